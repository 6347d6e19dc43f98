"""One process of the suite measuring: each cell, its verdict, and writing it down."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from slimcore.bench.grid.cells import Cell, Grid
from slimcore.bench.judge import baseline
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records import results
from slimcore.bench.suite.alone import Alone
from slimcore.bench.suite.pairs import Pairs
from slimcore.bench.suite.remote import HERE, checkout
from slimcore.errors import ResultsError, SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.judge.gate import Judgement
    from slimcore.bench.measure.timing import Protocol, Timing
    from slimcore.bench.records.results import Record


@dataclass(frozen=True)
class Places:
    """Folders a run reads and writes."""

    root: Path  # of the checkout
    reports: Path
    baselines: Path


@dataclass(frozen=True)
class Options:
    """How a run is measured and judged, where it is not the usual way."""

    resume: str | None = None  # a run's name, or `latest`
    against: str | None = None  # a git ref or a folder
    aa: int | None = None  # this version against itself, so many times
    devices: str | None = None  # `auto`: a model is spread over the GPUs
    detect: float | None = None
    strict: bool = False
    shard: str | None = None  # k/n
    again: Mapping[str, str] = field(default_factory=dict)  # id -> the command that measures it again
    name: str | None = None  # of a run's folder that several processes share
    worker: str = ""  # which of them this one is
    workers: int = 1


class Session:
    """Measures and judges the selected cells of one grid."""

    def __init__(
        self, grid: Grid, cells: Sequence[Cell], places: Places, protocol: Protocol, options: Options | None = None
    ) -> None:
        """Open the run's folder: a new one, or one that is gone on with. Raises ResultsError."""
        from slimcore.bench.measure import environment

        options = options or Options()
        machine = environment.machine_key(grid.device, options.workers, options.devices)
        accepted = baseline.read(places.baselines, machine, grid.name, grid.device)
        self._unpacked: TemporaryDirectory[str] | None = None
        against, name = HERE, "itself" if options.aa else None
        if options.against is not None:
            self._unpacked = TemporaryDirectory(prefix="slimcore-")
            against, name = checkout(places.root, options.against, Path(self._unpacked.name))
        if options.resume:
            self.run = results.resume(places.reports, options.resume, grid.name, options.worker)
        elif options.name:
            self.run = results.share(places.reports, options.name, options.worker)
        else:
            self.run = results.create(places.reports, grid.name)
        start = {
            "kind": "run",
            "schema": results.SCHEMA,
            "grid": grid.name,
            "device": grid.device,
            "machine": machine,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "shard": options.shard,
            "against": name,
            "aa": options.aa,
            "devices": options.devices,
            "detect": options.detect,
            "strict": options.strict,
            "software": environment.software(places.root, grid.device),
            "grid_cells": list(dict.fromkeys(cell.id for cell in (*grid.cells(), *cells))),
            "cells": [cell.id for cell in cells],
        }
        self._check_same(start)
        self.judge = Judge(accepted.without(self.run.began), start, again=options.again)
        self.ways = (
            Alone(self.run, protocol, grid.device, options.devices)
            if name is None
            else Pairs(self.run, (against, HERE), protocol, options.devices)
        )
        self._done = dict(self.run.done)
        self.measured = 0  # records, by this start of the run
        self._since = psutil.Process().create_time()  # what the next record has taken began then
        self.resumed = sum(cell.id in self._done for cell in cells)
        self._write(start)

    def measure(self, cell: Cell) -> Judgement:
        """Measure `cell`, or take it from the run that is gone on with; measure a suspect again; its verdict.

        Whatever goes wrong is a status of the record, so that no exception holds a model's memory.
        """
        record = self._done.get(cell.id) or self._keep(cell, self._guarded(cell, {}))
        verdict = self.judge(record)
        if verdict.suspect:
            record = self._keep(cell, self._guarded(cell, record))
            verdict = self.judge(record)
        return verdict

    def line(self, cell: Cell) -> tuple[str, str]:
        """A few words on a measured cell, for the terminal, and its verdict."""
        from slimcore.bench.report import writing as report

        record = self._done.get(cell.id)
        if record is None:
            return "", ""
        verdict = self.judge(record)
        return report.line(record, verdict), verdict.verdict

    def close(self) -> None:
        """End the processes that measure, and remove what was unpacked."""
        self.ways.close()
        if self._unpacked is not None:
            self._unpacked.cleanup()

    def _guarded(self, cell: Cell, known: Record) -> Record:
        """Measure `cell`, or again where it is `known` already; an error is a status."""
        from slimcore.bench.measure.timing import Timing, release

        try:
            return known | self.ways.again(cell, known) if known else self._time(cell)
        except SlimcoreError as error:  # says what to do: a traceback would hide it
            timing = Timing("error", str(error))
            release(error)
        except Exception as error:  # noqa: BLE001 - a cell's failure must not cost the next one
            timing = Timing("error", "".join(traceback.format_exception(error)).strip())
            release(error)
        self.ways.drop()
        return timing.as_dict()

    def _time(self, cell: Cell) -> Record:
        smaller = self._out_of_memory_below(cell)
        if smaller is None:
            return self.ways.measure(cell, self._write)
        known = self._done[cell.with_batch(smaller).id]
        return {k: known[k] for k in ("against_status",) if k in known} | _not_tried(smaller).as_dict()

    def _out_of_memory_below(self, cell: Cell) -> int | None:
        """A smaller batch at which the same cell did not fit."""
        for record in self._done.values():
            batch = record["batch"]
            if record["status"] == "oom" and batch < cell.batch and cell.with_batch(batch).id == record["id"]:
                return int(batch)
        return None

    def _keep(self, cell: Cell, figures: Record) -> Record:
        now = time.time()
        spent = round(figures.get("spent_s", 0.0) + now - self._since, 3)
        self._since = now
        record = {"kind": "cell"} | cell.as_dict() | figures | {"ended": round(now, 3), "spent_s": spent}
        self._done[cell.id] = record
        self.measured += 1
        self._write(record)
        return record

    def _write(self, record: Record) -> None:
        results.append(self.run, record)

    def _check_same(self, start: Record) -> None:
        """A run is gone on with by the same grid, machine and mode only."""
        if not self.run.starts:
            return
        before = self.run.start
        for what in ("grid", "machine", "against", "devices"):
            if before.get(what) != start[what]:
                raise ResultsError(
                    f"{self.run.folder} was measured with {what} {before.get(what)!r}, this is {start[what]!r}:"
                    " start a new run, without --perf-resume"
                )


def _not_tried(smaller: int) -> Timing:
    from slimcore.bench.measure.timing import Timing

    return Timing("oom", f"not tried: M{smaller} was out of memory already")
