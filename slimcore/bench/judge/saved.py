"""What lies on the disk -> something to judge (a run) and something to judge against (a baseline)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge import baseline
from slimcore.bench.judge.baseline import Baseline, night_of
from slimcore.bench.judge.judging import Judge
from slimcore.bench.judge.nights import Night, read_night
from slimcore.bench.records import results
from slimcore.bench.records.records import SCHEMA, Measurement, Start
from slimcore.bench.records.results import Run
from slimcore.errors import ResultsError

ALIKE = ("grid", "machine", "device")


def measured(path: Path) -> Run:
    """A run folder, or an accepted night as a run. Raises ResultsError."""
    if path.is_file():
        return _as_run(read_night(path))
    run = results.read(path)
    if not run.starts or not run.done:
        raise ResultsError(f"{path} holds no measured cell: nothing to compare, go on with it by --perf-resume")
    if run.start.against:
        raise ResultsError(
            f"{path} was measured in turn with {run.start.against}: its verdicts are in its own report; compare"
            " runs without --perf-against and --perf-aa"
        )
    return run


def accepted(path: Path) -> Baseline:
    """A run folder or a night as a baseline of one night, or a folder of nights. Raises ResultsError."""
    if path.is_dir() and not list(path.glob("results*.jsonl")):
        nights = sorted(path.glob("*.json"))
        if not nights:
            raise ResultsError(f"{path} is neither a run's folder (reports/RUN) nor one of nights (baselines/M/GRID)")
        newest = read_night(nights[-1])
        return baseline.read(path.parent.parent, newest.machine, newest.grid, newest.device)
    run = measured(path)
    night = night_of(run, run.done.values())
    return Baseline(path, night.machine, night.grid, night.device, (night,), run.subjects, title=str(path))


def compared(old: Path, new: Path) -> tuple[Run, Judge]:
    """`new`, and its judge against `old`, where nothing can be measured again.

    Raises ResultsError where they cannot be compared: another machine, another grid, no cell in common.
    """
    run, known = measured(new), accepted(old)
    for what in ALIKE:
        here, there = getattr(run.start, what), getattr(known, what)
        if here != there:
            raise ResultsError(f"{old} is of {what} {there!r}, {new} of {here!r}: times of two are never compared")
    judge = Judge(known, replace(run.start, strict=False), run.weights)
    judge.alone = sum(judge.reference(cell) is not None for cell in run.done.values())
    if not judge.alone:
        counts = f"{len(known.references)} and {len(run.done)} cells"
        raise ResultsError(f"{old} and {new} have no cell of the same weights in common: {counts}")
    return run, judge


def _as_run(night: Night) -> Run:
    ids = tuple(night.cells)
    start = Start(
        SCHEMA, night.grid, night.device, night.machine, night.started, night.software, cells=ids, grid_cells=ids
    )
    cells = {
        i: Measurement(Cell.of_id(i, night.device), one.status, times=one.times, conditions=one.conditions)
        for i, one in night.cells.items()
    }
    return Run(night.path, starts=[start], cells=cells, weights=dict(night.weights))
