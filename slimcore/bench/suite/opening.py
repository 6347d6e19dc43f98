"""Opening a run: a new one, or one that is gone on with, by the same software."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from slimcore.bench.records import results
from slimcore.bench.records.records import Fact, Start
from slimcore.errors import ResultsError

# Of the software, what makes two runs of one where it differs; the rest is nobody's choice.
IDENTITY = ("slimcore", "commit", "dirty", "diff", "python", "torch", "transformers", "vllm", "threads", "settings",
            "cuda")  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Folders a run reads and writes."""

    root: Path  # of the checkout
    reports: Path
    baselines: Path


def opened(reports: Path, grid: str, *, resume: str | None, shared: str | None, worker: str) -> results.Run:
    """The run called `resume` (the latest of `grid`), else the folder `shared` of several workers, else a new one.

    Raises ResultsError.
    """
    if resume:
        return results.resume(reports, resume, grid, worker)
    return results.share(reports, shared, worker) if shared else results.create(reports, grid)


def checked_same(run: results.Run, start: Start, *, insists: bool) -> Start:
    """`start`, where it goes on with what `run` was. Raises ResultsError where grid, machine, mode or versions differ.

    Other versions can be insisted on: the run is then mixed, and never accepted.
    """
    for what in ("grid", "machine", "against", "devices"):
        before, now = getattr(run.start, what), getattr(start, what)
        if before != now:
            raise ResultsError(
                f"{run.folder} was measured with {what} {before!r}, this is {now!r}: start a new run, without"
                " --perf-resume"
            )
    old, new = run.start.software, start.software
    differs = [f"{k} {_said(old.get(k))} -> {_said(new.get(k))}" for k in IDENTITY if old.get(k) != new.get(k)]
    if differs and not insists:
        raise ResultsError(
            f"{run.folder} was measured by other software ({'; '.join(differs)}): start a new run, without"
            " --perf-resume, or go on with it by --perf-mixed, and it is never accepted as a night"
        )
    return replace(start, mixed=bool(differs) or any(one.mixed for one in run.starts))


def _said(fact: Fact) -> str:
    return "none" if fact is None else str(fact)
