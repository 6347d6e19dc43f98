"""What lies on the disk -> something to judge (a run) and something to judge against (a baseline)."""

from __future__ import annotations

from pathlib import Path

from slimcore.bench.judge import baseline
from slimcore.bench.judge.baseline import Baseline, Night, cost_of, read_night
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records import results
from slimcore.bench.records.results import SCHEMA, Run
from slimcore.errors import ResultsError

ALIKE = ("grid", "machine", "device")


def measured(path: Path) -> Run:
    """A run folder, or an accepted night as a run. Raises ResultsError."""
    if path.is_file():
        return _as_run(read_night(path))
    run = results.read(path)
    if not run.starts or not run.done:
        raise ResultsError(f"{path} holds no measured cell: nothing to compare, go on with it by --perf-resume")
    if run.start.get("against"):
        raise ResultsError(
            f"{path} was measured in turn with {run.start['against']}: its verdicts are in its own report; compare"
            " runs without --perf-against and --perf-aa"
        )
    return run


def accepted(path: Path) -> Baseline:
    """A run folder or a night as a baseline of one night, or a folder of nights. Raises ResultsError."""
    if path.is_dir() and not list(path.glob("results*.jsonl")):
        nights = sorted(path.glob("*.json"))
        if not nights:
            raise ResultsError(f"{path} is neither a run's folder (reports/RUN) nor one of nights (baselines/M/GRID)")
        night = read_night(nights[-1])
        return baseline.read(path.parent.parent, night.machine, night.grid, night.device)
    run = measured(path)
    start = run.start
    night = Night(
        path, start["machine"], start["grid"], start["device"], start["started"], "", pinned=False,
        software=start["software"], moved=(), gone=(), cells=run.done,
    )  # fmt: skip
    costs = {f"{model}/{method}": cost_of(subject) for (model, method), subject in run.subjects.items()}
    return Baseline(path, night.machine, night.grid, night.device, (night,), costs, title=str(path))


def compared(old: Path, new: Path) -> tuple[Run, Judge]:
    """`new`, and its judge against `old`, where nothing can be measured again.

    Raises ResultsError where they cannot be compared: another machine, another grid, no cell in common.
    """
    run, known = measured(new), accepted(old)
    for what in ALIKE:
        here, there = run.start[what], getattr(known, what)
        if here != there:
            raise ResultsError(f"{old} is of {what} {there!r}, {new} of {here!r}: times of two are never compared")
    common = [cell for cell in run.done if cell in known.references]
    if not common:
        raise ResultsError(f"{old} and {new} have no cell in common: {len(known.references)} and {len(run.done)} cells")
    return run, Judge(known, run.start | {"strict": False}, alone=len(common))


def _as_run(night: Night) -> Run:
    cells = {i: {"kind": "cell", "id": i, "device": night.device} | cell for i, cell in night.cells.items()}
    start = {
        "kind": "run", "schema": SCHEMA, "grid": night.grid, "machine": night.machine, "device": night.device,
        "started": night.started, "software": night.software, "cells": list(cells), "grid_cells": list(cells),
    }  # fmt: skip
    return Run(night.path, starts=[start], cells=cells)
