"""pytest hooks, options and fixtures of the performance suite: only those.

A test that takes the fixture `cell` runs once for every cell of the grid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimcore.errors import SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.cell import Cell, Grid
    from slimcore.bench.session import Session

MARKS = {"cpu": "cpu", "cuda": "gpu"}  # device -> mark
DEFAULTS = ("cpu", "gpu")  # grids, where none is named
AXES = ("models", "methods", "inputs", "outputs", "batches")

_GRIDS = pytest.StashKey["list[Grid]"]()
_SESSION = pytest.StashKey["Session"]()
_MEASURED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, and where the grids are."""
    axes: tuple[tuple[str, Callable[[str], Any], str], ...] = (
        ("models", _names, "models to measure: names, folders, hub ids"),
        ("methods", _names, "methods, as the grid has them (depth-ppl) or with a budget (depth-ppl:0.35)"),
        ("inputs", _numbers, "numbers of input tokens"),
        ("outputs", _numbers, "numbers of output tokens"),
        ("batches", _numbers, "batch sizes"),
    )
    group = parser.getgroup("slimcore", "measuring generation")
    group.addoption("--perf-grid", metavar="NAME", help="grid to measure (default: gpu where there is one, else cpu)")
    for name, kind, text in axes:
        group.addoption(f"--perf-{name}", type=kind, metavar="A,B", help=f"{text}; in place of the grid's")
    group.addoption("--perf-seconds", type=float, default=6.0, help="time for the repeats of a cell (default: 6)")
    group.addoption("--perf-resume", nargs="?", const="latest", metavar="RUN", help="go on with a run, or the latest")
    group.addoption("--perf-update", action="store_true", help="accept what this run measures as the baseline")
    group.addoption("--perf-reports", type=Path, metavar="DIR", help="where runs are written (default: reports)")
    group.addoption("--perf-baselines", type=Path, metavar="DIR", help="where baselines lie (default: baselines)")
    parser.addini("perf_grids", "file of grids", type="string", default="perf/grids.toml")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell."""
    if "cell" in metafunc.fixturenames:
        cells = [cell for grid in _narrowed(metafunc.config) for cell in grid.cells()]
        metafunc.parametrize(
            "cell", [pytest.param(c, id=c.id, marks=getattr(pytest.mark, MARKS[c.device])) for c in cells]
        )


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the grids of both devices are left, keep that of the device that is here."""
    devices = {cell.device for item in items if (cell := _cell(item))}
    if len(devices) > 1:
        wanted = "cuda" if _cuda() else "cpu"
        others = [item for item in items if (cell := _cell(item)) and cell.device != wanted]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Refuse a run that could measure nothing; open the run."""
    from slimcore.bench.measure import Protocol
    from slimcore.bench.session import Places
    from slimcore.bench.session import Session as Measuring

    config = session.config
    cells = [cell for item in session.items if (cell := _cell(item))]
    if (
        not cells
        or config.option.collectonly
        or (session.testsfailed and not config.option.continue_on_collection_errors)
    ):
        return
    if hasattr(config, "workerinput"):  # the fixture `bench` says why
        return
    if cells[0].device == "cuda" and not _cuda():
        raise pytest.UsageError(f"0 of {len(cells)} cells measured: no CUDA device")
    option, root = config.option, config.rootpath
    places = Places(root, option.perf_reports or root / "reports", option.perf_baselines or root / "baselines")
    grid = next(grid for grid in config.stash[_GRIDS] if grid.device == cells[0].device)
    try:
        config.stash[_SESSION] = Measuring(
            grid, cells, places, Protocol(seconds=option.perf_seconds), option.perf_resume
        )
    except SlimcoreError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Session:
    """What measures and judges cells."""
    if hasattr(pytestconfig, "workerinput"):
        pytest.fail("cells are timed one at a time, or they would slow each other down: run without -n", pytrace=False)
    session = pytestconfig.stash[_SESSION]
    session.building = lambda: _progress_shown(pytestconfig)
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
        report.perf = session.line(cell)  # type: ignore[attr-defined]
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """With -v, say the figures and the verdict in place of PASSED."""
    words = getattr(report, "perf", None)
    return ("passed", ".", words) if words and report.passed else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report; accept the run where that was asked."""
    measuring = session.config.stash.get(_SESSION, None)
    if measuring is not None and not measuring.finish(update=session.config.option.perf_update):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the run showed; the report's path last."""
    measuring = config.stash.get(_SESSION, None)
    if measuring is not None:
        terminalreporter.section("slimcore")
        for line in measuring.summary:
            terminalreporter.write_line(line)


def _narrowed(config: pytest.Config) -> list[Grid]:
    """The grids to take cells from, narrowed by the options; the whole ones are kept on the config."""
    from slimcore.bench.cell import grid_named, load_grids

    named = config.option.perf_grid
    axes = {axis: getattr(config.option, f"perf_{axis}") for axis in AXES}
    try:
        grids = load_grids(config.rootpath / config.getini("perf_grids"))
        chosen = [grid_named(grids, named)] if named else [grids[name] for name in DEFAULTS if name in grids]
        config.stash[_GRIDS] = chosen
        return [grid.narrow(**axes) for grid in chosen]
    except SlimcoreError as error:
        raise pytest.Collector.CollectError(str(error)) from None


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


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _names(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ValueError
    return items


def _numbers(text: str) -> list[int]:
    numbers = [int(item) for item in _names(text)]
    if min(numbers) < 1:
        raise ValueError
    return numbers
