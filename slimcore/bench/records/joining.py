"""The parts of a grid that several machines measured -> one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from slimcore.bench.records.records import Line
from slimcore.bench.records.results import Run
from slimcore.errors import ResultsError
from slimcore.files import new_folder


def join(runs: Sequence[Run], into: Path) -> Run:
    """One run of several parts, written whole to the new folder `into`. Raises ResultsError where they do not fit."""
    _check_alike(runs)
    lost = _missing_shards(runs)
    if lost:
        raise ResultsError(f"parts {_list(lost)} of --perf-shard are missing: measure them, and give them too")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ResultsError(f"{into} is there already: choose another place for the whole")
    joined = Run(into)
    with new_folder(into) as folder:
        joined.folder = folder
        for run in runs:
            lines: list[Line] = [*run.starts, *run.subjects.values(), *run.others.values(), *run.cells.values()]
            for line in lines:
                joined.append(line)
    joined.folder = into
    return joined


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise ResultsError unless all measured parts of one grid, each its own, on one kind of machine and commit."""
    first = runs[0]
    for run in runs:
        if not run.starts:
            raise ResultsError(f"{run.folder} has no start: nothing was measured there")
        for what in ("grid", "machine", "device"):
            mine, its = getattr(first.start, what), getattr(run.start, what)
            if its != mine:
                raise ResultsError(
                    f"{run.folder} is of {what} {its!r}, {first.folder} of {mine!r}:"
                    " only parts of one grid on one kind of machine are joined"
                )
        commits = {r.start.software.get("commit") for r in (first, run)}
        if len(commits) > 1:
            raise ResultsError(f"{run.folder} and {first.folder} measured different commits: {_list(commits)}")
    twice = [i for n, run in enumerate(runs) for i in run.cells if any(i in other.cells for other in runs[:n])]
    if twice:
        raise ResultsError(f"{len(twice)} cells are in more than one part, {twice[0]} among them: give each part once")


def _missing_shards(runs: Sequence[Run]) -> set[str]:
    """Parts of a sharded grid that are not among `runs`."""
    have = {start.shard for run in runs for start in run.starts if start.shard}
    return {f"{k}/{n}" for n in {part.split("/")[1] for part in have} for k in range(1, int(n) + 1)} - have


def _list(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))
