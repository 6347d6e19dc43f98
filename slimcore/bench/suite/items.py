"""Tests that pytest has collected, and what each is to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from slimcore.bench.grid.cells import Cell

if TYPE_CHECKING:
    import pytest

FIXTURE, TIMED = "perf_cell", "timed"
OURS = "slimcore.bench.suite.plugin"  # has the fixtures


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell of a test that has one, or that its own code is; None of any other test."""
    cell: Cell | None = item.callspec.params.get(FIXTURE) if hasattr(item, "callspec") else None
    if cell is not None or not hasattr(item, "_fixtureinfo"):
        return cell
    known = item._fixtureinfo.name2fixturedefs.get(TIMED)  # the last one is taken, which may be somebody else's
    return cell_of_code(item) if known and known[-1].func.__module__ == OURS else None


def cell_of_code(item: pytest.Item) -> Cell:
    """A test's own code as a cell."""
    return Cell.of_test(item.nodeid, item.config.getini("perf_timed_device"))


def cells_of(items: Iterable[pytest.Item], *, timed: bool) -> list[Cell]:
    """The cells of those that have one: of a grid, or `timed` code."""
    return [cell for item in items if (cell := cell_of(item)) and cell.timed is timed]


def leave_out(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[Cell], bool]) -> None:
    """Deselect the tests of unwanted cells of a grid."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        cell = cell_of(item)
        (dropped if cell is not None and not cell.timed and unwanted(cell) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
