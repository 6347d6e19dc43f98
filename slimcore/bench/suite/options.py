"""The options of the performance suite: declared, read, refused where they clash; and what they come to."""

from __future__ import annotations

import json
import math
import shlex
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimcore.bench.grid.cells import DTYPES
from slimcore.bench.grid.grids import Grid, grid_named, load_grids
from slimcore.bench.measure.machine import has_cuda
from slimcore.bench.measure.protocol import PAPER, Protocol

if TYPE_CHECKING:
    from slimcore.bench.suite.lanes import Machine
    from slimcore.bench.suite.opening import Places
    from slimcore.bench.suite.workers import Settings

DEFAULTS = ("cpu", "figure")  # grids, where none is named
AXES = ("models", "methods", "inputs", "outputs", "batches", "engines")


def declare(parser: pytest.Parser) -> None:
    """Every option, and where the grids are."""
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
    group.addoption("--perf-dtype", choices=tuple(DTYPES), help="of the weights; in place of the grid's")
    group.addoption("--perf-seconds", type=_seconds, default=6.0, help="time for the repeats of a cell (default: 6)")
    group.addoption("--perf-protocol", choices=("adaptive", "paper"), default="adaptive",
                    help="paper: the published 10 + 20 runs, sampled (default: adaptive)")  # fmt: skip
    group.addoption("--perf-devices", choices=("auto",), metavar="auto",
                    help="auto: accelerate spreads a model over the GPUs (default: it lies on one)")  # fmt: skip
    group.addoption("--perf-plan", action="store_true", help="print what is to be measured, time and memory")
    group.addoption("--perf-gpu", metavar="NAME", help="GPU to plan for, as h100 (default: the device that is here)")
    group.addoption("--perf-budget", type=_duration, metavar="10m", help="measure what fits, the most telling first")
    group.addoption("--perf-resume", nargs="?", const="latest", metavar="RUN", help="go on with a run, or the latest")
    group.addoption("--perf-mixed", action="store_true", help="go on with a run in spite of another commit or versions")
    group.addoption("--perf-against", metavar="REF", help="measure a git ref, or a folder, in turn with this version")
    group.addoption("--perf-aa", type=_count, metavar="N", help="measure this version against itself N times")
    group.addoption("--perf-shard", type=_shard, metavar="K/N", help="measure part K of N; slimcore merge joins them")
    group.addoption(
        "--perf-detect",
        type=_share,
        metavar="SHARE",
        help="slowdown that must show (0.05 is 5 %%; CPU: 0.1)",
    )
    group.addoption("--perf-strict", action="store_true", help="inconclusive and no baseline fail")
    group.addoption("--perf-update", nargs="?", const="add", choices=("add", "replace"),
                    help="accept this run as a night; replace: cells that moved start anew")  # fmt: skip
    group.addoption("--perf-reason", metavar="TEXT", help="why this run is accepted")
    group.addoption("--perf-allow", type=_names, default=[], metavar="A,B", help="of dirty,missing,inconclusive,moved")
    group.addoption("--perf-pin", action="store_true", help="accept this run as a release, to measure drift against")
    group.addoption("--perf-python", type=_pair, action="append", default=[], metavar="ENGINE=PYTHON",
                    help="interpreter that has an engine, as vllm=DIR/bin/python (default: ours)")  # fmt: skip
    group.addoption("--perf-engine-options", type=_json, default={}, metavar="JSON",
                    help='of vllm.LLM, as \'{"tensor_parallel_size": 2}\'')  # fmt: skip
    group.addoption("--perf-deadline", type=_factor, default=10.0, metavar="FACTOR",
                    help="a step may take so many times its forecast, a minute at least (default: 10)")  # fmt: skip
    group.addoption("--perf-reports", type=Path, metavar="DIR", help="where runs are written (default: reports)")
    group.addoption("--perf-baselines", type=Path, metavar="DIR", help="where baselines lie (default: baselines)")
    parser.addini("perf_timed_device", "what tests that take `timed` use: cpu or cuda", type="string", default="cpu")
    parser.addini("perf_grids", "file of grids", type="string", default="perf/grids.toml")


def refuse_clashes(option: Namespace) -> None:
    """Raise UsageError for options that cannot go together."""
    workers = getattr(option, "tx", None)
    clashes = {
        "--perf-aa measures this version against itself: leave --perf-against out":
            option.perf_against and option.perf_aa,
        "--perf-against and --perf-aa need the machine for themselves: run without -n":
            workers and (option.perf_against or option.perf_aa),
        "--perf-budget counts the time of one process: run without -n, or narrow the grid":
            workers and option.perf_budget,
        "--perf-plan measures nothing: run without -n":
            workers and option.perf_plan,
        "--perf-update needs --perf-reason TEXT: why these measurements are right":
            option.perf_update and not option.perf_reason,
        "--perf-devices gives one process all GPUs: run without -n":
            workers and option.perf_devices,
        "--perf-gpu plans for one GPU: leave --perf-devices out":
            option.perf_gpu and option.perf_devices,
    }  # fmt: skip
    for message, there in clashes.items():
        if there:
            raise pytest.UsageError(message)


def grids(config: pytest.Config) -> tuple[list[Grid], list[Grid]]:
    """The grids to take cells from: whole, and narrowed. Raises SlimcoreError."""
    option = config.option
    known = load_grids(config.rootpath / config.getini("perf_grids"))
    named = option.perf_grid
    if option.perf_dtype and not named:  # of one dtype, cells of both devices would have the same names
        named = DEFAULTS[has_cuda()]
    whole = [grid_named(known, named)] if named else [known[name] for name in DEFAULTS if name in known]
    axes = {axis: getattr(option, f"perf_{axis}") for axis in AXES}
    rounds, how = option.perf_aa or 1, option.perf_protocol
    narrowed = [
        replace(g.narrow(**axes), rounds=rounds, protocol=how, dtype=option.perf_dtype or g.dtype) for g in whole
    ]
    return whole, narrowed


def protocol(option: Namespace) -> Protocol:
    """How long each cell is measured."""
    return PAPER if option.perf_protocol == "paper" else Protocol(seconds=option.perf_seconds)


def places(config: pytest.Config) -> Places:
    """The folders to read and write."""
    from slimcore.bench.suite.opening import Places

    option, root = config.option, config.rootpath
    return Places(root, option.perf_reports or root / "reports", option.perf_baselines or root / "baselines")


def machine(option: Namespace, device: str, share: int = 1, settings: Settings | None = None) -> Machine:
    """What the processes that measure on `device` are told."""
    from slimcore.bench.suite.lanes import Machine
    from slimcore.bench.suite.workers import Settings

    return Machine(
        device, option.perf_devices, share, settings or Settings(), dict(option.perf_python),
        option.perf_engine_options, option.perf_deadline,
    )  # fmt: skip


def again(option: Namespace, test: str) -> str:
    """The command that measures the cell of one `test` again."""
    options = [f"--perf-grid={option.perf_grid}"] if option.perf_grid else []
    options += [f"--perf-protocol={option.perf_protocol}"] if option.perf_protocol != "adaptive" else []
    options += [f"--perf-{name}={value}" for name in ("dtype", "devices") if (value := getattr(option, f"perf_{name}"))]
    given = {axis: values for axis in AXES if (values := getattr(option, f"perf_{axis}"))}
    options += [f"--perf-{axis}={','.join(map(str, values))}" for axis, values in given.items()]
    return shlex.join(["pytest", test, *options])


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


def _seconds(text: str) -> float:
    return _between(text, 0.0, math.inf)


def _share(text: str) -> float:
    """Of 1, above 0."""
    share = _between(text, 0.0, 1.0)
    if not share:
        raise ValueError
    return share


def _factor(text: str) -> float:
    return _between(text, 1.0, math.inf)


def _between(text: str, low: float, high: float) -> float:
    number = float(text)
    if not low <= number < high:  # NaN is neither
        raise ValueError
    return number


def _pair(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given or not Path(value).exists():
        raise ValueError
    return name, value


def _json(text: str) -> dict[str, Any]:
    read = json.loads(text)
    if not isinstance(read, dict):
        raise TypeError
    return read


def _shard(text: str) -> tuple[int, int]:
    number, count = (int(part) for part in text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return number, count
