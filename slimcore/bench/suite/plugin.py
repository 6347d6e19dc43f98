"""pytest hooks and fixtures of the performance suite: only those.

A test that takes the fixture `perf_cell` runs once for every cell of the grid; one that takes `timed` times code of its
own. A suite without either is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

from slimcore.bench.grid.cells import shard
from slimcore.bench.measure.machine import has_cuda
from slimcore.bench.suite import options
from slimcore.bench.suite.bar import Bar
from slimcore.bench.suite.items import FIXTURE, cell_of, cell_of_code, cells_of, leave_out
from slimcore.bench.suite.whole_run import RUNS, Runs
from slimcore.errors import SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.suite.session import Session
    from slimcore.bench.suite.timing import Timed

AUTO = "transformers.models.auto.configuration_auto"
MARKS = {"cpu": "cpu", "cuda": "gpu"}  # device -> mark


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, and where the grids are."""
    options.declare(parser)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell."""
    if FIXTURE not in metafunc.fixturenames:
        return
    try:
        metafunc.config.stash[RUNS].grids, narrowed = options.grids(metafunc.config)
    except SlimcoreError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    cells = [cell for grid in narrowed for cell in grid.cells()]
    metafunc.parametrize(
        FIXTURE, [pytest.param(c, id=c.id, marks=getattr(pytest.mark, MARKS[c.device])) for c in cells]
    )


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the grids of both devices are left, keep that of the device that is here; then this part of it."""
    cells = cells_of(items, timed=False)
    devices = {cell.device for cell in cells}
    wanted = devices if len(devices) < 2 else {"cuda" if has_cuda() else "cpu"}
    own = {cell for cell in cells if cell.device in wanted}
    if config.option.perf_shard and own:
        ordered = [cell for cell in cells if cell in own]
        try:
            own = set(shard(ordered, *config.option.perf_shard))
        except SlimcoreError as error:
            raise pytest.UsageError(str(error)) from None
    leave_out(config, items, lambda cell: cell not in own)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks; refuse what cannot go together; have a part with workers where xdist is."""
    for device, mark in MARKS.items():
        config.addinivalue_line("markers", f"{mark}: a cell that is measured on a {device.upper()} device")
    options.refuse_clashes(config.option)
    config.stash[RUNS] = Runs(config)
    if config.pluginmanager.hasplugin("xdist"):
        from slimcore.bench.suite import parallel

        config.pluginmanager.register(parallel, "slimcore-workers")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Have transformers' Auto classes know slimcore's models, where a suite has imported both.

    `import slimcore` does that, but in a test it finds slimcore imported, by pytest for this plugin.
    """
    if AUTO in sys.modules:
        from slimcore.registration import register

        with suppress(Exception):  # a broken transformers is not ours to tell of
            register()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Refuse a run that could measure nothing; open the runs; conclude them, and fail for what only the whole shows."""
    runs, option = session.config.stash[RUNS], session.config.option
    if not option.collectonly and (option.continue_on_collection_errors or not session.testsfailed):
        runs.begin(session)
    try:
        return (yield)
    finally:
        runs.end(session)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a cell whose engine is not here, or for which no time is left."""
    if (cell := cell_of(item)) and (reason := item.config.stash[RUNS].unmeasurable(cell)):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def perf_bench(pytestconfig: pytest.Config) -> Session:
    """What measures and judges cells."""
    session = pytestconfig.stash[RUNS].opened(timed=False)
    bar = Bar()
    session.lanes.report = bar

    @contextmanager
    def shown() -> Iterator[None]:
        with _progress_shown(pytestconfig):
            yield
            bar.close()

    session.lanes.building = shown
    return session


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Timed:
    """Times code of your own: `timed(lambda: step(x))`, once in a test, which is red where that got slower.

    As a cell: warmed up, repeated until the median is tight, beside the canary, which another process reads; judged
    against the accepted nights of this test on this machine, in baselines/<machine>/timed/. Each sample is of as many
    calls as two milliseconds hold, and waits for a GPU that torch has begun to use. A suspect is measured again in four
    further rounds, of more samples in all, in this same process: code cannot be moved to a fresh one, so that what the
    process is like by chance stays in the verdict's doubt. What the code raises fails the test as it is.
    """
    from slimcore.bench.suite.timing import Timed

    cell = cell_of_code(request.node)
    return Timed(request.config.stash[RUNS].opened(timed=True, cell=cell), cell)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what was measured on the report, for the line of the cell."""
    report = yield
    cell = cell_of(item)
    session = item.config.stash[RUNS].of(cell) if cell else None
    if session is not None and cell is not None:
        # Plain text: it has to reach the controller.
        report.perf_run = str(session.run.folder)  # type: ignore[attr-defined]
        if call.when == "call":
            report.perf, report.perf_verdict = session.line(cell)  # type: ignore[attr-defined]
    return report


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
    if lines := config.stash[RUNS].lines:
        terminalreporter.section("slimcore")
        for line in lines:
            terminalreporter.write_line(line)


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
