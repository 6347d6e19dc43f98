"""Runs as a whole: opened for the cells that were asked, concluded; what only they show is a failed test."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.grids import Grid, grid_of_tests
from slimcore.bench.measure.machine import has_cuda
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.suite import options
from slimcore.bench.suite.items import cell_of, cells_of, leave_out
from slimcore.errors import ResultsError, SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.judge.checks import Check
    from slimcore.bench.report.conclusion import Conclusion
    from slimcore.bench.suite.session import Session


class Runs:
    """What one pytest process measures: cells of a grid are one run, tests that time their own code another."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker = hasattr(config, "workerinput")
        self._sessions: dict[bool, Session] = {}  # by Cell.timed
        self._asked: dict[bool, list[Cell]] = {}
        self._tests: dict[str, str] = {}  # cell's id -> its test's
        self._refused: dict[bool, str] = {}  # why a worker cannot measure
        self._due = math.inf  # of --perf-budget, on the monotonic clock
        self.grids: list[Grid] = []  # whole, before the options narrow them
        self.folders: dict[Path, None] = {}  # of results, in order, that workers have told of
        self.lines: list[str] = []  # for the terminal

    def begin(self, session: pytest.Session) -> None:
        """Open the runs of the collected tests, or only plan them; a worker opens one with its first test of it.

        Raises UsageError; in a worker, each test fails instead.
        """
        asked = [(timed, cells_of(getattr(session, "items", []), timed=timed)) for timed in (False, True)]
        self._asked = {timed: cells for timed, cells in asked if cells}  # the controller of workers has none
        self._tests = {cell.id: item.nodeid for item in session.items if (cell := cell_of(item))} if self._asked else {}
        if self._worker:
            return
        try:
            for cells in self._asked.values():
                if self._config.option.perf_plan:
                    self._plan(cells)
                else:
                    self._keep_to_budget(session, cells, self._open(cells))
        except SlimcoreError as error:
            self._close()
            raise pytest.UsageError(str(error)) from None
        if self.lines:
            session.items[:] = []

    def end(self, session: pytest.Session) -> None:
        """End the processes that measure, and conclude the runs; what the whole fails for is a failed test."""
        self._close()
        if self._worker:
            return
        measured = {one.run.folder: one for one in self._sessions.values()}
        for folder in measured or self.folders:
            conclusion = concluded(self._config, folder, measured.get(folder))
            self.lines += conclusion.lines
            session.testscollected += len(conclusion.failures)
            for report in failed_tests(conclusion.failures):
                self._config.hook.pytest_runtest_logreport(report=report)

    def of(self, cell: Cell) -> Session | None:
        """What measures `cell` in this process."""
        return self._sessions.get(cell.timed)

    def opened(self, *, timed: bool, cell: Cell | None = None) -> Session:
        """What measures in this process; the test that asks fails where nothing can, or `cell` was not collected."""
        if self._worker and timed in self._asked and not {timed} & {*self._sessions, *self._refused}:
            try:
                self._open(self._asked[timed])
            except SlimcoreError as error:
                self._refused[timed] = str(error)
        if timed in self._refused:
            pytest.fail(self._refused[timed], pytrace=False)
        if timed not in self._sessions or (cell and cell not in self._asked[timed]):
            pytest.fail("this test was not known to measure: take the fixture as an argument of it", pytrace=False)
        return self._sessions[timed]

    def unmeasurable(self, cell: Cell) -> str:
        """Why `cell` is not to be measured now; empty where it is."""
        session = self.opened(timed=cell.timed)
        if cell.id in session.run.done:
            return ""
        if reason := session.missing(cell.engine):
            return reason
        late = time.monotonic() > self._due and session.measured
        return "the time of --perf-budget is used: --perf-resume goes on" if late else ""

    def _plan(self, cells: Sequence[Cell]) -> None:
        from slimcore.bench.suite import planning

        if cells[0].timed:
            self.lines.append(f"{len(cells)} tests time code of their own: how long that takes is not known before")
        else:
            self.lines += planning.described(self._config.option, cells)

    def _open(self, cells: Sequence[Cell]) -> Session:
        found = self._sessions[cells[0].timed] = opened(self._config, self.grids, cells, self._tests)
        return found

    def _keep_to_budget(self, session: pytest.Session, cells: Sequence[Cell], measuring: Session) -> None:
        option = self._config.option
        if not option.perf_budget:
            return
        self._due = min(self._due, time.monotonic() + option.perf_budget)
        waiting = [cell for cell in cells if cell.id not in measuring.run.done and not cell.timed]
        if waiting:
            from slimcore.bench.suite import planning

            late = set(waiting) - planning.within_budget(option, waiting, measuring.lanes)
            measuring.leave_out(late)
            leave_out(self._config, session.items, lambda cell: cell in late)
            session.testscollected = len(session.items)

    def _close(self) -> None:
        for session in self._sessions.values():
            session.close()


RUNS = pytest.StashKey[Runs]()


def opened(config: pytest.Config, grids: list[Grid], cells: Sequence[Cell], tests: Mapping[str, str]) -> Session:
    """What measures `cells`, all of one of `grids`, or all of tests that time code of their own.

    `tests`: cell's id -> its test's. Raises ResultsError.
    """
    from slimcore.bench.suite.lanes import Lanes
    from slimcore.bench.suite.session import Options, Session
    from slimcore.bench.suite.timing import Here

    option, worker = config.option, getattr(config, "workerinput", {})
    timed = cells[0].timed
    grid = grid_of_tests(cells[0].device) if timed else next(g for g in grids if g.device == cells[0].device)
    workers = worker.get("workercount", 1)
    if grid.device == "cuda" and not has_cuda():
        why = f": -n {workers} needs as many" if worker else ""
        raise ResultsError(f"0 of {len(cells)} cells measured: no CUDA device{why}")
    if timed and (option.perf_against or option.perf_aa):
        raise ResultsError(
            f"{cells[0].id} takes `timed`: its code runs in this process, where no other version is; leave such tests"
            " out, or measure each version in a run of its own: slimcore compare RUN_A RUN_B"
        )
    if timed and grid.device == "cuda" and worker:
        raise ResultsError(f"{cells[0].id} takes `timed`, and would share its GPU with {workers - 1} others: run it"
                           " without -n")  # fmt: skip
    if option.perf_devices and grid.device == "cpu" and not timed:
        raise ResultsError(f"--perf-devices is for GPUs, and grid {grid.name!r} is measured on the CPU: leave it out")
    settings = None
    if worker:
        from slimcore.bench.suite.workers import share

        settings = share(grid.device, worker["slimcore_slot"], workers)
    chosen = Options(
        resume=option.perf_resume,
        mixed=option.perf_mixed,
        against=option.perf_against,
        aa=option.perf_aa,
        detect=option.perf_detect,
        strict=option.perf_strict,
        shard="/".join(map(str, option.perf_shard)) if option.perf_shard and not timed else None,
        again={cell: options.again(option, test) for cell, test in tests.items()},
        name=f"{grid.name}-{worker['slimcore_stamp']}" if worker else None,
        worker=worker.get("workerid", ""),
        budget=option.perf_budget,
        lanes=Here if timed else Lanes,
    )
    machine, protocol = options.machine(option, grid.device, workers, settings), options.protocol(option)
    if timed:
        machine, protocol = replace(machine, devices=None), Protocol(option.perf_seconds)
    return Session(grid, cells, options.places(config), protocol, machine, chosen)


def concluded(config: pytest.Config, folder: Path, session: Session | None) -> Conclusion:
    """Judge the run in `folder`, write its report, accept it where that was asked; `session` measured it here."""
    from slimcore.bench.judge.judging import judge_of
    from slimcore.bench.records import results
    from slimcore.bench.report.conclusion import Update, conclude, find

    option, run, update = config.option, results.read(folder), None
    if option.perf_update:
        update = Update(option.perf_reason, option.perf_update == "replace", option.perf_allow, option.perf_pin)
    judge = session.judge if session else judge_of(run, options.places(config).baselines)
    return conclude(find(run, judge), update=update, resumed=session.resumed if session else 0, tests=True)


def failed_tests(checks: Iterable[Check]) -> Iterator[pytest.TestReport]:
    """Reports of a failed test for each of `checks`."""
    for check in checks:
        for when, outcome, words in (("call", "failed", check.message), ("teardown", "passed", None)):
            yield pytest.TestReport(
                nodeid=f"whole run::{check.name}",
                location=("whole run", None, check.name),
                keywords={},
                outcome=outcome,  # type: ignore[arg-type]
                longrepr=words,
                when=when,  # type: ignore[arg-type]
            )
