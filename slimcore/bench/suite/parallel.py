"""Several pytest-xdist workers: each has its own GPU, or its own cores, and whole subjects to measure.

A plugin of its own, which the measuring plugin registers where xdist is.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from slimcore.bench.records.results import stamp
from slimcore.bench.suite.whole_run import RUNS

_SLOTS = pytest.StashKey[dict[str, int]]()
_STAMP = pytest.StashKey[str]()
_CELL = re.compile(r"\[(.+)/i\d+-o\d+/m\d+/[^/]+\]$")


class BySubject(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out all cells of a model and method together, so that it is built once; other tests one by one."""

    def _split_scope(self, nodeid: str) -> str:
        cell = _CELL.search(nodeid)
        return cell[1] if cell else nodeid


def pytest_configure_node(node: Any) -> None:
    """Tell a worker its place and the run's name."""
    stash = node.config.stash
    node.workerinput["slimcore_slot"] = free_slot(stash.setdefault(_SLOTS, {}), node.gateway.id)
    node.workerinput["slimcore_stamp"] = stash.setdefault(_STAMP, stamp())


def pytest_testnodedown(node: Any) -> None:
    """Free a worker's place."""
    node.config.stash.get(_SLOTS, {}).pop(node.gateway.id, None)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> BySubject | None:
    """Where there are grids, and nothing else was asked for, whole subjects go to a worker."""
    if config.option.dist != "load" or not (config.rootpath / config.getini("perf_grids")).exists():
        return None
    return BySubject(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Learn from a worker where its run lies."""
    node = getattr(report, "node", None)
    if node is not None and hasattr(report, "perf_run"):
        node.config.stash[RUNS].folders[Path(report.perf_run)] = None


def free_slot(taken: MutableMapping[str, int], worker: str) -> int:
    """The lowest number no living worker has, given to `worker`: one that replaces a crashed one takes its place."""
    taken[worker] = next(n for n in range(len(taken) + 1) if n not in taken.values())
    return taken[worker]
