"""pytest hooks and fixtures of the performance suite: only those.

A test that takes the fixture `cell` runs once for every cell of the grid.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimcore.bench.grid.cells import Cell, Grid, shard
from slimcore.bench.measure.environment import has_cuda
from slimcore.bench.suite import options
from slimcore.errors import SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.suite.session import Session

MARKS = {"cpu": "cpu", "cuda": "gpu"}  # device -> mark

_GRIDS = pytest.StashKey[list[Grid]]()  # whole, before the options narrow them
_SESSION = pytest.StashKey["Session"]()  # of a process that measures
_REFUSED = pytest.StashKey[str]()  # why a worker cannot
_RUN = pytest.StashKey[Path]()  # the folder of results, on the controller of workers
_SLOTS = pytest.StashKey[dict[str, int]]()
_STAMP = pytest.StashKey[str]()
_LINES = pytest.StashKey[list[str]]()
_DEADLINE = pytest.StashKey[float]()  # of --perf-budget, on the monotonic clock


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, and where the grids are."""
    options.declare(parser)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell."""
    if "cell" not in metafunc.fixturenames:
        return
    try:
        metafunc.config.stash[_GRIDS], narrowed = options.grids(metafunc.config)
    except SlimcoreError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    cells = [cell for grid in narrowed for cell in grid.cells()]
    metafunc.parametrize("cell", [pytest.param(c, id=c.id, marks=getattr(pytest.mark, MARKS[c.device])) for c in cells])


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the grids of both devices are left, keep that of the device that is here; then this part of it."""
    devices = {cell.device for item in items if (cell := _cell(item))}
    wanted = devices if len(devices) < 2 else {"cuda" if has_cuda() else "cpu"}
    own = {cell for item in items if (cell := _cell(item)) and cell.device in wanted}
    if config.option.perf_shard and own:
        ordered = [cell for item in items if (cell := _cell(item)) in own]
        try:
            own = set(shard(ordered, *config.option.perf_shard))
        except SlimcoreError as error:
            raise pytest.UsageError(str(error)) from None
    _leave_out(config, items, lambda cell: cell not in own)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot go together; give a worker its GPU before anything looks for one."""
    options.refuse_clashes(config.option)
    if hasattr(config, "workerinput"):
        from slimcore.bench.suite.parallel import own_gpu

        own_gpu(config.workerinput["slimcore_slot"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker its place and the run's name."""
    from slimcore.bench.records import results
    from slimcore.bench.suite.parallel import free_slot

    stash = node.config.stash
    node.workerinput["slimcore_slot"] = free_slot(stash.setdefault(_SLOTS, {}), node.gateway.id)
    node.workerinput["slimcore_stamp"] = stash.setdefault(_STAMP, results.stamp())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Free a worker's place."""
    node.config.stash.get(_SLOTS, {}).pop(node.gateway.id, None)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where nothing else was asked for, whole subjects go to a worker."""
    if config.option.dist != "load":
        return None
    from slimcore.bench.suite.parallel import BySubject

    return BySubject(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Refuse a run that could measure nothing; open the run; conclude it, and fail for what only the whole shows."""
    config = session.config
    failed = session.testsfailed and not config.option.continue_on_collection_errors
    if not failed and not config.option.collectonly and (cells := _cells(session)):
        try:
            _begin(session, cells)
        except SlimcoreError as error:
            if not hasattr(config, "workerinput"):
                raise pytest.UsageError(str(error)) from None
            config.stash[_REFUSED] = str(error)  # the fixture `bench` says it, cell by cell
    try:
        return (yield)
    finally:
        if _SESSION in config.stash:
            config.stash[_SESSION].close()
        if not hasattr(config, "workerinput"):
            _end(session)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a cell whose engine is not here, or for which no time is left."""
    cell, config = _cell(item), item.config
    if cell is None or _SESSION not in config.stash:
        return
    from slimcore.bench.measure.engines import missing

    if reason := missing(cell.engine, cell.device):
        pytest.skip(reason)
    session = config.stash[_SESSION]
    late = time.monotonic() > config.stash.get(_DEADLINE, math.inf) and session.measured
    if late and cell.id not in session.run.done:
        pytest.skip("the time of --perf-budget is used: --perf-resume goes on")


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Session:
    """What measures and judges cells."""
    if _REFUSED in pytestconfig.stash:
        pytest.fail(pytestconfig.stash[_REFUSED], pytrace=False)
    session = pytestconfig.stash[_SESSION]
    session.ways.building = lambda: _progress_shown(pytestconfig)
    return session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what was measured on the report, for the line of the cell."""
    report = yield
    session = item.config.stash.get(_SESSION, None)
    cell = _cell(item)
    if call.when == "call" and session is not None and cell is not None:
        # Plain text: it has to reach the controller.
        report.perf, report.perf_verdict = session.line(cell)  # type: ignore[attr-defined]
        report.perf_run = str(session.run.folder)  # type: ignore[attr-defined]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Learn from a worker where the run lies."""
    node = getattr(report, "node", None)
    if node is not None and hasattr(report, "perf_run"):
        node.config.stash[_RUN] = Path(report.perf_run)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, Any] | None:
    """With -v, say the figures and the verdict in place of PASSED; a cell that cannot be judged is not green."""
    words = getattr(report, "perf", None)
    if not words or not report.passed:
        return None
    if getattr(report, "perf_verdict", "") == "inconclusive":
        return "inconclusive", "i", (words, {"yellow": True})
    return "passed", ".", words


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the run showed; the report's path last."""
    if _LINES in config.stash:
        terminalreporter.section("slimcore")
        for line in config.stash[_LINES]:
            terminalreporter.write_line(line)


def _begin(session: pytest.Session, cells: Sequence[Cell]) -> None:
    """Open the run of `cells`, or only plan it. Raises SlimcoreError."""
    from slimcore.bench.suite import planning, whole_run

    config = session.config
    if config.option.perf_plan:
        config.stash[_LINES] = planning.described(config.option, cells)
        session.items[:] = []
        return
    tests = {cell.id: item.nodeid for item in session.items if (cell := _cell(item))}
    run = config.stash[_SESSION] = whole_run.opened(config, config.stash[_GRIDS], cells, tests)
    if not config.option.perf_budget:
        return
    config.stash[_DEADLINE] = time.monotonic() + config.option.perf_budget
    if waiting := [cell for cell in cells if cell.id not in run.run.done]:
        late = set(waiting) - planning.within_budget(config.option, waiting)
        _leave_out(config, session.items, lambda cell: cell in late)
        session.testscollected = len(session.items)


def _end(session: pytest.Session) -> None:
    """Conclude the run, where there is one."""
    config = session.config
    measuring = config.stash.get(_SESSION, None)
    folder = measuring.run.folder if measuring else config.stash.get(_RUN, None)
    if folder is None:
        return
    from slimcore.bench.suite import whole_run

    conclusion = whole_run.concluded(config, folder, measuring)
    config.stash[_LINES] = conclusion.lines
    session.testscollected += len(conclusion.failures)
    for report in whole_run.failed_tests(conclusion.failures):
        config.hook.pytest_runtest_logreport(report=report)


def _leave_out(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[Cell], bool]) -> None:
    """Deselect the tests of unwanted cells."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        cell = _cell(item)
        (dropped if cell is not None and unwanted(cell) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _cells(session: pytest.Session) -> list[Cell]:
    """Those of the collected tests; the controller of workers has none."""
    return [cell for item in getattr(session, "items", []) if (cell := _cell(item))]


def _cell(item: pytest.Item) -> Cell | None:
    """The cell of a test that has one."""
    return item.callspec.params.get("cell") if hasattr(item, "callspec") else None


@contextmanager
def _progress_shown(config: pytest.Config) -> Iterator[None]:
    """Let progress bars through to a terminal, on a line of their own; elsewhere all stays captured."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        terminal = sys.stderr.isatty()
    with capture.global_and_fixture_disabled() if terminal else nullcontext():
        if terminal:
            sys.stderr.write("\n")
        yield
