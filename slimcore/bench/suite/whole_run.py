"""The run as a whole: opened for the cells that were asked, concluded; what only it shows is a failed test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slimcore.bench.grid.cells import Cell, Grid
from slimcore.bench.measure.environment import has_cuda
from slimcore.bench.suite import options
from slimcore.errors import ResultsError

if TYPE_CHECKING:
    from slimcore.bench.judge.checks import Check
    from slimcore.bench.report.conclusion import Conclusion
    from slimcore.bench.suite.session import Session


def opened(config: pytest.Config, grids: list[Grid], cells: Sequence[Cell], tests: Mapping[str, str]) -> Session:
    """What measures `cells`, all of one of `grids`; `tests`: cell's id -> its test's. Raises ResultsError."""
    from slimcore.bench.suite.session import Options, Session

    option, worker = config.option, getattr(config, "workerinput", {})
    grid = next(grid for grid in grids if grid.device == cells[0].device)
    workers = worker.get("workercount", 1)
    if grid.device == "cuda" and not has_cuda():
        why = f": -n {workers} needs as many" if worker else ""
        raise ResultsError(f"0 of {len(cells)} cells measured: no CUDA device{why}")
    if option.perf_devices and grid.device == "cpu":
        raise ResultsError(f"--perf-devices is for GPUs, and grid {grid.name!r} is measured on the CPU: leave it out")
    if worker and grid.device == "cpu":
        from slimcore.bench.suite.parallel import own_cores

        own_cores(worker["slimcore_slot"], workers)
    chosen = Options(
        resume=option.perf_resume,
        against=option.perf_against,
        aa=option.perf_aa,
        devices=option.perf_devices,
        detect=option.perf_detect,
        strict=option.perf_strict,
        shard="/".join(map(str, option.perf_shard)) if option.perf_shard else None,
        again={cell: options.again(option, test) for cell, test in tests.items()},
        name=f"{grid.name}-{worker['slimcore_stamp']}" if worker else None,
        worker=worker.get("workerid", ""),
        workers=workers,
    )
    return Session(grid, cells, options.places(config), options.protocol(option), chosen)


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
