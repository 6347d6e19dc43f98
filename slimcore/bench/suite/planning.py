"""Before anything is measured: what the asked cells will take, and which of them fit into the asked time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from slimcore.bench.grid import forecast, limit
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.limit import Device
from slimcore.bench.measure.machine import has_cuda
from slimcore.bench.records.results import Run
from slimcore.bench.suite import options
from slimcore.bench.suite.lanes import Lanes


def described(option: Namespace, cells: Sequence[Cell]) -> list[str]:
    """Each cell and the whole, for the terminal. Raises UnknownNameError for a GPU that is not known."""
    protocol = options.protocol(option)
    # Only its worker is asked: nothing is written to the run.
    lanes = Lanes(Run(Path()), options.machine(option, cells[0].device), protocol, {})
    try:
        subjects = lanes.planned(cells)
        device = _device(option.perf_gpu, cells[0].device, lanes)
    finally:
        lanes.end()
    return forecast.described(forecast.forecast(cells, subjects, device, protocol), subjects, device)


def within_budget(option: Namespace, cells: Sequence[Cell], lanes: Lanes) -> set[Cell]:
    """The cells to measure in the asked time. Raises as `described` does."""
    subjects = lanes.planned(cells)
    device = _device(option.perf_gpu, cells[0].device, lanes)
    return forecast.within(
        forecast.forecast(cells, subjects, device, options.protocol(option)), subjects, option.perf_budget
    )


def _device(named: str | None, kind: str, lanes: Lanes) -> Device:
    """The device to plan for: the named one, or that at hand; an H100 for a GPU grid where there is none."""
    if named or (kind == "cuda" and not has_cuda()):
        return limit.gpu_named(named or "h100")
    if lanes.device is None:
        lanes.facts(Path())
    assert lanes.device is not None
    return lanes.device
