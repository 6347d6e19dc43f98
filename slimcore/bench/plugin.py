"""pytest hooks, options and fixtures of the performance suite: only those.

A test that takes the fixture `cell` runs once for every cell of the grid.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimcore.errors import ResultsError, SlimcoreError

if TYPE_CHECKING:
    from slimcore.bench.cell import Cell, Grid
    from slimcore.bench.forecast import Forecast, Record
    from slimcore.bench.limit import Device
    from slimcore.bench.measure import Protocol
    from slimcore.bench.session import Places, Session

MARKS = {"cpu": "cpu", "cuda": "gpu"}  # device -> mark
DEFAULTS = ("cpu", "figure")  # grids, where none is named
AXES = ("models", "methods", "inputs", "outputs", "batches", "engines")

_GRIDS = pytest.StashKey["list[Grid]"]()
_SESSION = pytest.StashKey["Session"]()  # of a process that measures
_REFUSED = pytest.StashKey[str]()  # why a worker cannot
_RUN = pytest.StashKey[Path]()  # the folder of results, on the controller of workers
_SLOTS = pytest.StashKey[dict[str, int]]()
_STAMP = pytest.StashKey[str]()
_LINES = pytest.StashKey[list[str]]()
_DEADLINE = pytest.StashKey[float]()  # of --perf-budget, on the monotonic clock


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options, and where the grids are."""
    axes: tuple[tuple[str, Callable[[str], Any], str], ...] = (
        ("models", _names, "models to measure: names, folders, hub ids"),
        ("methods", _names, "methods, as the grid has them (depth-ppl) or with a budget (depth-ppl:0.35)"),
        ("inputs", _numbers, "numbers of input tokens"),
        ("outputs", _numbers, "numbers of output tokens"),
        ("batches", _numbers, "batch sizes"),
        ("engines", _names, "engines: eager, compiled, vllm"),
    )
    group = parser.getgroup("slimcore", "measuring generation")
    group.addoption("--perf-grid", metavar="NAME", help="grid to measure (default: figure on a GPU, else cpu)")
    for name, kind, text in axes:
        group.addoption(f"--perf-{name}", type=kind, metavar="A,B", help=f"{text}; in place of the grid's")
    group.addoption("--perf-seconds", type=float, default=6.0, help="time for the repeats of a cell (default: 6)")
    group.addoption("--perf-protocol", choices=("adaptive", "paper"), default="adaptive",
                    help="paper: the published 10 + 20 runs, sampled, by CUDA events (default: adaptive)")  # fmt: skip
    group.addoption("--perf-plan", action="store_true", help="print what is to be measured, time and memory")
    group.addoption("--perf-gpu", metavar="NAME", help="GPU to plan for, as h100 (default: the device that is here)")
    group.addoption("--perf-budget", type=_duration, metavar="10m", help="measure what fits, the most telling first")
    group.addoption("--perf-resume", nargs="?", const="latest", metavar="RUN", help="go on with a run, or the latest")
    group.addoption("--perf-against", metavar="REF", help="measure a git ref, or a folder, in turn with this version")
    group.addoption("--perf-aa", type=_count, metavar="N", help="measure this version against itself N times")
    group.addoption("--perf-shard", type=_shard, metavar="K/N", help="measure part K of N; slimcore merge joins them")
    group.addoption("--perf-detect", type=float, metavar="SHARE", help="slowdown that must be visible (0.05, CPU 0.1)")
    group.addoption("--perf-strict", action="store_true", help="inconclusive and no baseline fail")
    group.addoption("--perf-update", nargs="?", const="add", choices=("add", "replace"),
                    help="accept this run as a night; replace: cells that moved start anew")  # fmt: skip
    group.addoption("--perf-reason", metavar="TEXT", help="why this run is accepted")
    group.addoption("--perf-allow", type=_names, default=[], metavar="A,B", help="accept dirty,missing,inconclusive")
    group.addoption("--perf-pin", action="store_true", help="accept this run as a release, to measure drift against")
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
    """Where the grids of both devices are left, keep that of the device that is here; then this part of it."""
    devices = {cell.device for item in items if (cell := _cell(item))}
    wanted = devices if len(devices) < 2 else {"cuda" if _cuda() else "cpu"}
    own = {cell for item in items if (cell := _cell(item)) and cell.device in wanted}
    if config.option.perf_shard and own:
        from slimcore.bench.cell import shard

        ordered = [cell for item in items if (cell := _cell(item)) in own]
        try:
            own = set(shard(ordered, *config.option.perf_shard))
        except SlimcoreError as error:
            raise pytest.UsageError(str(error)) from None
    _leave_out(config, items, lambda cell: cell not in own)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot go together; give a worker its GPU before anything looks for one."""
    option = config.option
    if option.perf_against and option.perf_aa:
        raise pytest.UsageError("--perf-aa measures this version against itself: leave --perf-against out")
    if getattr(option, "tx", None) and (option.perf_against or option.perf_aa):
        raise pytest.UsageError("--perf-against and --perf-aa need the machine for themselves: run without -n")
    if getattr(option, "tx", None) and option.perf_budget:
        raise pytest.UsageError("--perf-budget counts the time of one process: run without -n, or narrow the grid")
    if option.perf_update and not option.perf_reason:
        raise pytest.UsageError("--perf-update needs --perf-reason TEXT: why these measurements are right")
    if hasattr(config, "workerinput"):
        from slimcore.bench.parallel import own_gpu

        own_gpu(config.workerinput["slimcore_slot"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker its place and the run's name."""
    from slimcore.bench import results
    from slimcore.bench.parallel import free_slot

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
    from slimcore.bench.parallel import BySubject

    return BySubject(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Refuse a run that could measure nothing; open the run; conclude it, and fail for what only the whole shows."""
    config = session.config
    cells = [cell for item in session.items if (cell := _cell(item))] if hasattr(session, "items") else []
    failed = session.testsfailed and not config.option.continue_on_collection_errors
    if cells and config.option.perf_plan and not failed:
        config.stash[_LINES] = _plan(config, cells)
        session.items[:] = []
    elif cells and not config.option.collectonly and not failed:
        try:
            config.stash[_SESSION] = _open(config, session.items, cells)
        except SlimcoreError as error:
            if not hasattr(config, "workerinput"):
                raise pytest.UsageError(str(error)) from None
            config.stash[_REFUSED] = str(error)  # the fixture `bench` says it, cell by cell
        else:
            if config.option.perf_budget:
                _keep_to_budget(session)
    try:
        return (yield)
    finally:
        if _SESSION in config.stash:
            config.stash[_SESSION].close()
        if not hasattr(config, "workerinput"):
            _conclude(session)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a cell whose engine is not here, or for which no time is left."""
    cell, config = _cell(item), item.config
    if cell is None or _SESSION not in config.stash:
        return
    from slimcore.bench.engines import missing

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


def _plan(config: pytest.Config, cells: Sequence[Cell]) -> list[str]:
    """What is to be measured, cell by cell, and in all."""
    from slimcore.bench import forecast

    return forecast.described(*_forecast(config, cells))


def _forecast(
    config: pytest.Config, cells: Sequence[Cell]
) -> tuple[list[Forecast], dict[tuple[str, str], Record], Device]:
    """Each cell before it is measured, the subjects, and the device that is planned for."""
    from slimcore.bench import forecast

    device = _device(config, cells[0].device)
    subjects = forecast.costs(cells)
    return forecast.forecast(cells, subjects, device, _protocol(config)), subjects, device


def _keep_to_budget(session: pytest.Session) -> None:
    """Leave the items of cells that are done, and of those that fit into the time."""
    from slimcore.bench import forecast

    config, done = session.config, session.config.stash[_SESSION].run.done
    cells = [cell for item in session.items if (cell := _cell(item)) and cell.id not in done]
    waiting = set(cells)
    config.stash[_DEADLINE] = time.monotonic() + config.option.perf_budget
    if not cells:
        return
    found, subjects, _ = _forecast(config, cells)
    chosen = forecast.within(found, subjects, config.option.perf_budget)
    _leave_out(config, session.items, lambda cell: cell in waiting and cell not in chosen)
    session.testscollected = len(session.items)


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


def _device(config: pytest.Config, kind: str) -> Device:
    """The device to plan for: a named one, or that at hand; an H100 for a GPU grid where there is none."""
    from slimcore.bench.limit import gpu_named

    named = config.option.perf_gpu
    if named or (kind == "cuda" and not _cuda()):
        try:
            return gpu_named(named or "h100")
        except SlimcoreError as error:
            raise pytest.UsageError(str(error)) from None
    from slimcore.bench.canary import at_hand

    return at_hand(kind)


def _protocol(config: pytest.Config) -> Protocol:
    from slimcore.bench.measure import PAPER, Protocol

    return PAPER if config.option.perf_protocol == "paper" else Protocol(seconds=config.option.perf_seconds)


def _open(config: pytest.Config, items: Sequence[pytest.Item], cells: Sequence[Cell]) -> Session:
    from slimcore.bench.session import Options, Session

    option, worker = config.option, getattr(config, "workerinput", {})
    grid = next(grid for grid in config.stash[_GRIDS] if grid.device == cells[0].device)
    workers = worker.get("workercount", 1)
    if cells[0].device == "cuda" and not _cuda():
        why = f": -n {workers} needs as many" if worker else ""
        raise ResultsError(f"0 of {len(cells)} cells measured: no CUDA device{why}")
    if worker and cells[0].device == "cpu":
        from slimcore.bench.parallel import own_cores

        own_cores(worker["slimcore_slot"], workers)
    options = Options(
        resume=option.perf_resume,
        against=option.perf_against,
        aa=option.perf_aa,
        detect=option.perf_detect,
        strict=option.perf_strict,
        shard="/".join(map(str, option.perf_shard)) if option.perf_shard else None,
        again={cell.id: _again(config, item) for item in items if (cell := _cell(item))},
        name=f"{grid.name}-{worker['slimcore_stamp']}" if worker else None,
        worker=worker.get("workerid", ""),
        workers=workers,
    )
    return Session(grid, cells, _places(config), _protocol(config), options)


def _conclude(session: pytest.Session) -> None:
    """Judge the whole run, write the report, accept it where that was asked; what fails is a failed test."""
    config = session.config
    option, measuring = config.option, config.stash.get(_SESSION, None)
    folder = measuring.run.folder if measuring else config.stash.get(_RUN, None)
    if folder is None:
        return
    from slimcore.bench import results
    from slimcore.bench.conclusion import Update, conclude, find
    from slimcore.bench.judging import judge_of

    run = results.read(folder)
    update = None
    if option.perf_update:
        update = Update(option.perf_reason, option.perf_update == "replace", option.perf_allow, option.perf_pin)
    judge = measuring.judge if measuring else judge_of(run, _places(config).baselines)
    conclusion = conclude(find(run, judge), update=update, resumed=measuring.resumed if measuring else 0)
    config.stash[_LINES] = conclusion.lines
    session.testscollected += len(conclusion.failures)
    for check in conclusion.failures:
        for when, outcome, words in (("call", "failed", check.message), ("teardown", "passed", None)):
            config.hook.pytest_runtest_logreport(
                report=pytest.TestReport(
                    nodeid=f"whole run::{check.name}",
                    location=("whole run", None, check.name),
                    keywords={},
                    outcome=outcome,  # type: ignore[arg-type]
                    longrepr=words,
                    when=when,  # type: ignore[arg-type]
                )
            )


def _places(config: pytest.Config) -> Places:
    from slimcore.bench.session import Places

    option, root = config.option, config.rootpath
    return Places(root, option.perf_reports or root / "reports", option.perf_baselines or root / "baselines")


def _again(config: pytest.Config, item: pytest.Item) -> str:
    """The command that measures one cell again."""
    option = config.option
    options = [f"--perf-grid={option.perf_grid}"] if option.perf_grid else []
    options += [f"--perf-protocol={option.perf_protocol}"] if option.perf_protocol != "adaptive" else []
    given = {axis: values for axis in AXES if (values := getattr(option, f"perf_{axis}"))}
    options += [f"--perf-{axis}={','.join(map(str, values))}" for axis, values in given.items()]
    return shlex.join(["pytest", item.nodeid, *options])


def _narrowed(config: pytest.Config) -> list[Grid]:
    """The grids to take cells from, narrowed by the options; the whole ones are kept on the config."""
    from slimcore.bench.cell import grid_named, load_grids

    named = config.option.perf_grid
    axes = {axis: getattr(config.option, f"perf_{axis}") for axis in AXES}
    try:
        grids = load_grids(config.rootpath / config.getini("perf_grids"))
        chosen = [grid_named(grids, named)] if named else [grids[name] for name in DEFAULTS if name in grids]
        config.stash[_GRIDS] = chosen
        rounds, protocol = config.option.perf_aa or 1, config.option.perf_protocol
        return [replace(grid.narrow(**axes), rounds=rounds, protocol=protocol) for grid in chosen]
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
    # Without a driver there is no need to import torch, which takes seconds.
    if sys.platform == "linux" and not any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        return False
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


def _count(text: str) -> int:
    (number,) = _numbers(text)
    return number


def _duration(text: str) -> float:
    """Seconds of 90, 90s, 10m or 1.5h."""
    seconds = float(text.rstrip("smh")) * {"m": 60, "h": 3600}.get(text[-1], 1)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _shard(text: str) -> tuple[int, int]:
    number, count = (int(part) for part in text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return number, count
