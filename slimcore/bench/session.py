"""One run of the suite: which cells, measuring and judging each, writing it down, and the report at the end."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimcore.bench import baseline, results
from slimcore.bench.cell import Cell, Grid
from slimcore.bench.gate import Judgement, judge
from slimcore.errors import ResultsError, SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.measure import Protocol, Timing
    from slimcore.bench.results import Record


@dataclass(frozen=True)
class Places:
    """Folders a run reads and writes."""

    root: Path  # of the checkout
    reports: Path
    baselines: Path


class Session:
    """Measures the selected cells of one grid."""

    def __init__(
        self, grid: Grid, cells: Sequence[Cell], places: Places, protocol: Protocol, resume: str | None = None
    ) -> None:
        """Open the run's folder: a new one, or with `resume` one that is there. Raises ResultsError."""
        from slimcore.bench import environment
        from slimcore.bench.subject import Subjects

        machine = environment.machine_key(grid.device)
        self.path = baseline.path_of(places.baselines, machine, grid.name)
        self.accepted = baseline.read(self.path)
        self.run = (
            results.resume(places.reports, resume, grid.name) if resume else results.create(places.reports, grid.name)
        )
        if self.run.starts and (self.run.start["machine"], self.run.start["grid"]) != (machine, grid.name):
            raise ResultsError(
                f"{self.run.folder} was measured with grid {self.run.start['grid']!r} on {self.run.start['machine']},"
                f" this is {grid.name!r} on {machine}: start a new run, without --perf-resume"
            )
        self._grid_ids = {cell.id for cell in grid.cells()}
        self._protocol = protocol
        self.summary: list[str] = []
        self.building: Callable[[], AbstractContextManager[None]] = nullcontext  # around the long work before a cell
        self._done = dict(self.run.done)
        self._resumed = sum(cell.id in self._done for cell in cells)
        self.subjects = Subjects(dict(self.run.subjects))
        self._write(
            {
                "kind": "run",
                "schema": results.SCHEMA,
                "grid": grid.name,
                "machine": machine,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "software": environment.software(places.root, grid.device),
                "cells": list(dict.fromkeys([*self.run.planned, *(cell.id for cell in cells)])),
            }
        )

    def measure(self, cell: Cell) -> Record:
        """The record of `cell`: from the run that is gone on with, or measured and written down now.

        Whatever goes wrong is a status of the record, so that no exception holds a model's memory.
        """
        if cell.id in self._done:
            return self._done[cell.id]
        from slimcore.bench.measure import Timing, release

        try:
            timing = self._time(cell)
        except Exception as error:  # noqa: BLE001 - a cell's failure must not cost the next one
            timing = Timing("error", "".join(traceback.format_exception(error)).strip())
            release(error)
        if timing.status == "error":
            self.subjects.drop()
        record = {"kind": "cell"} | cell.as_dict() | timing.as_dict()
        self._done[cell.id] = record
        self._write(record)
        return record

    def judge(self, record: Record) -> Judgement:
        """The verdict on a measured cell."""
        return judge(record, self.accepted.cells.get(record["id"]) if self.accepted else None)

    def line(self, cell: Cell) -> str:
        """A few words on a measured cell, for the terminal."""
        from slimcore.bench import report

        record = self._done.get(cell.id)
        return "" if record is None else report.line(record, self.judge(record))

    def finish(self, *, update: bool) -> bool:
        """Write the report and fill `summary`; with `update` make the run the baseline. False where that failed."""
        from slimcore.bench import report

        try:
            self.summary = report.summary(self.run, self.accepted, self._grid_ids, self._resumed)
            if update:
                count = baseline.accept(self.path, self.run, self._grid_ids)
                self.summary.append(f"accepted {count} cells as the baseline {self.path}")
            path = report.write(self.run, self.accepted, self._grid_ids)
            report.append_step_summary(path)
        except (SlimcoreError, OSError) as error:
            self.summary.append(f"ERROR: {error}")
            return False
        self.summary.append(f"report: {path}")
        return True

    def _time(self, cell: Cell) -> Timing:
        from slimcore.bench.measure import Timing, measure, unless_out_of_memory

        smaller = self._out_of_memory_below(cell)
        if smaller is not None:
            return Timing("oom", f"not tried: M{smaller} was out of memory already")
        with nullcontext() if self.subjects.holds(cell) else self.building():
            subject, refusal = unless_out_of_memory(lambda: self.subjects.get(cell), cell.device)
        if subject is None:
            self.subjects.drop()
            return Timing("oom", f"the model itself does not fit: {refusal}")
        if cell.subject not in self.run.subjects:
            self._write({"kind": "subject"} | subject.record)
        return measure(subject.model, cell, self._protocol)

    def _out_of_memory_below(self, cell: Cell) -> int | None:
        """A smaller batch at which the same cell did not fit."""
        for record in self._done.values():
            batch = record["batch"]
            if record["status"] == "oom" and batch < cell.batch and cell.with_batch(batch).id == record["id"]:
                return int(batch)
        return None

    def _write(self, record: Record) -> None:
        results.append(self.run, record)
