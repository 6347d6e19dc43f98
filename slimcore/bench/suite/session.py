"""One process of the suite: each cell measured, its verdict, and writing it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from slimcore.bench.grid.cells import DENSE, WHOLE, Cell
from slimcore.bench.grid.grids import Grid
from slimcore.bench.judge import baseline
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.judge.judging import Judge
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.records.records import SCHEMA, Begun, Measurement, Start
from slimcore.bench.suite import opening
from slimcore.bench.suite.executor import Executor
from slimcore.bench.suite.lanes import OTHER, Lanes, Machine
from slimcore.bench.suite.opening import Places
from slimcore.bench.suite.versions import checkout, python_of
from slimcore.bench.suite.workers import HERE
from slimcore.errors import SlimcoreError

TRIES = 2  # of a cell that takes its process, or the machine, down


@dataclass(frozen=True)
class Options:
    """How a run is measured and judged, where it is not the usual way."""

    resume: str | None = None  # a run's name, or `latest`
    mixed: bool = False  # go on with it though commit or versions differ
    against: str | None = None  # a git ref or a folder
    aa: int | None = None  # this version against itself, so many times
    detect: float | None = None
    strict: bool = False
    shard: str | None = None  # k/n
    budget: float | None = None  # seconds
    again: Mapping[str, str] = field(default_factory=dict)  # id -> the command that measures it again
    name: str | None = None  # of a run's folder that several processes share
    worker: str = ""  # which of them this one is
    lanes: type[Lanes] = Lanes


class Session:
    """Measures and judges the selected cells of one grid."""

    def __init__(
        self, grid: Grid, cells: Sequence[Cell], places: Places, protocol: Protocol, machine: Machine,
        options: Options | None = None,
    ) -> None:  # fmt: skip
        """Open the run's folder: a new one, or one that is gone on with. Raises ResultsError."""
        options = options or Options()
        against, roots = "itself" if options.aa else None, {}
        with ExitStack() as opened:
            if options.against is not None:
                folder = opened.enter_context(TemporaryDirectory(prefix="slimcore-"))
                root, against = checkout(places.root, options.against, Path(folder))
                roots[OTHER] = (root, python_of(root, HERE))
            self.run = opening.opened(
                places.reports, grid.name, resume=options.resume, shared=options.name, worker=options.worker
            )
            opened.callback(self.run.close)
            self.lanes = options.lanes(self.run, machine, protocol, roots)
            opened.callback(self.lanes.end)
            start = self._start(grid, cells, places, options, against)
            if self.run.starts:
                start = opening.checked_same(self.run, start, insists=options.mixed)
            accepted = baseline.read(places.baselines, start.machine, grid.name, grid.device)
            self._opened = opened.pop_all()
        self._asked = {cell.id: cell for cell in cells}
        self._executor = Executor(self.run, self.lanes, protocol, versions=against is not None)
        self._done = dict(self.run.done)
        self._missing: dict[str, str] = {}  # engine -> why it cannot run
        self.measured = 0  # records, by this start of the run
        self.resumed = sum(cell.id in self._done for cell in cells)
        self._since = psutil.Process().create_time()  # what the next record has taken began then
        self.run.append(start)
        self.judge = Judge(accepted.without(self.run.began), start, self.run.weights, again=options.again)

    def leave_out(self, cells: Iterable[Cell]) -> None:
        """Do not measure these in this start of the run."""
        for cell in cells:
            self._asked.pop(cell.id, None)

    def measure(self, cell: Cell) -> Judgement:
        """Measure `cell`, or take it from the run that is gone on with; measure a suspect again; its verdict.

        Whatever goes wrong in a worker is a status of the record. Raises ResultsError where nothing can be written.
        """
        while cell.id not in self._done:
            self._measure_next(cell)
        known = self._done[cell.id]
        verdict = self.judge(known)
        if verdict.suspect:
            for measured in self._guarded(cell, lambda: [self._executor.again(cell, known)]):
                self._keep(measured)
            verdict = self.judge(self._done[cell.id])
        return verdict

    def line(self, cell: Cell) -> tuple[str, str]:
        """A few words on a measured cell, for the terminal, and its verdict."""
        from slimcore.bench.report import writing

        measured = self._done.get(cell.id)
        if measured is None:
            return "", ""
        verdict = self.judge(measured)
        return writing.line(measured, verdict), verdict.verdict

    def missing(self, engine: str) -> str:
        """Why `engine` cannot run here, asked once; empty where it can."""
        if engine not in self._missing:
            self._missing[engine] = self.lanes.missing(engine)
        return self._missing[engine]

    def close(self) -> None:
        """End the processes that measure, and remove what was unpacked."""
        self._opened.close()

    def _measure_next(self, cell: Cell) -> None:
        """Measure `cell`, or a longer one that it is a part of."""
        smaller = self._out_of_memory_below(cell)
        if smaller is not None:
            known = self._done[cell.with_batch(smaller).id]
            self._keep(Measurement(cell, "oom", f"not tried: M{smaller} was out of memory already",
                                   against=known.against and replace(known.against, fresh=())))  # fmt: skip
            return
        if self.run.begun[cell.id] >= TRIES:
            words = f"it took its process, or the machine, down {TRIES} times: nothing of it was written"
            self._keep(Measurement(cell, "error", words))
            return
        ladder = self._ladder(cell)
        longest = ladder[-1]
        dense = self._asked.get(replace(longest, method=DENSE).id)
        if dense is None or dense.id not in self._done or not self._done[dense.id].ran:
            dense = None
        self.run.append(Begun(longest.id, round(time.time(), 3)))
        lengths = tuple(one.output_tokens for one in ladder)
        for measured in self._guarded(longest, lambda: self._executor.measure(longest, lengths, dense)):
            self._keep(measured)

    def _ladder(self, cell: Cell) -> list[Cell]:
        """Asked cells that are `cell` but for their output tokens, shortest first, where one generate tells of all."""
        alone = self.judge.start.against is not None or cell.engine in WHOLE
        alike = [
            one for one in self._asked.values()
            if one.ladder == cell.ladder and one.id not in self._done
            and self._out_of_memory_below(one) is None and not self.run.begun[one.id]
        ]  # fmt: skip
        return [cell] if alone or cell not in alike else sorted(alike, key=lambda one: one.output_tokens)

    def _guarded(self, cell: Cell, work: Callable[[], list[Measurement]]) -> list[Measurement]:
        """What `work` measures; where it fails, `cell` is an error, and the next one has new processes."""
        try:
            return work()
        except SlimcoreError as error:
            self.lanes.close()
            return [Measurement(cell, "error", str(error))]

    def _out_of_memory_below(self, cell: Cell) -> int | None:
        """A smaller batch at which the same cell did not fit."""
        for measured in self._done.values():
            batch = measured.cell.batch
            if measured.status == "oom" and batch < cell.batch and cell.with_batch(batch) == measured.cell:
                return batch
        return None

    def _keep(self, measured: Measurement) -> None:
        now = time.time()
        known = self._done.get(measured.id)
        spent = (known.spent_s if known else 0.0) + now - self._since
        self._since = now
        measured = replace(measured, ended=round(now, 3), spent_s=round(spent, 3))
        self._done[measured.id] = measured
        self.measured += 1
        self.run.append(measured)

    def _start(self, grid: Grid, cells: Sequence[Cell], places: Places, options: Options, against: str | None) -> Start:
        engines = dict.fromkeys(cell.engine for cell in cells)
        machine, software = self.lanes.facts(places.root)
        for engine in engines:
            if engine in self.lanes.machine.pythons:
                _, its = self.lanes.facts(places.root, engine)
                software |= {engine: ", ".join(f"{k} {its[k]}" for k in ("vllm", "torch", "transformers") if k in its)}
        return Start(
            schema=SCHEMA,
            grid=grid.name,
            device=grid.device,
            machine=machine,
            started=datetime.now().astimezone().isoformat(timespec="milliseconds"),
            software=software,
            cells=tuple(cell.id for cell in cells),
            grid_cells=tuple(dict.fromkeys(cell.id for cell in (*grid.cells(), *cells))),
            shard=options.shard,
            against=against,
            aa=options.aa,
            devices=self.lanes.machine.devices,
            detect=options.detect,
            strict=options.strict,
            budget=options.budget,
        )
