"""Before anything is measured: what the asked cells will take, and which of them fit into the asked time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from slimcore.bench.grid import forecast, limit
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.forecast import Forecast, Record
from slimcore.bench.grid.limit import Device
from slimcore.bench.measure.environment import gpus, has_cuda
from slimcore.bench.suite import options


def described(option: Namespace, cells: Sequence[Cell]) -> list[str]:
    """Each cell and the whole, for the terminal. Raises UnknownNameError for a GPU that is not known."""
    return forecast.described(*_forecast(option, cells))


def within_budget(option: Namespace, cells: Sequence[Cell]) -> set[Cell]:
    """The cells to measure in the asked time. Raises as `described` does."""
    found, subjects, _ = _forecast(option, cells)
    return forecast.within(found, subjects, option.perf_budget)


def _forecast(option: Namespace, cells: Sequence[Cell]) -> tuple[list[Forecast], dict[tuple[str, str], Record], Device]:
    """Each cell before it is measured, the subjects, and the device that is planned for."""
    device = _device(option.perf_gpu, cells[0].device)
    if option.perf_devices and cells[0].device == "cuda" and has_cuda():
        device = replace(device, memory=gpus(option.perf_devices) * device.memory)  # their layers work in turn
    subjects = forecast.costs(cells)
    return forecast.forecast(cells, subjects, device, options.protocol(option)), subjects, device


def _device(named: str | None, kind: str) -> Device:
    """The device to plan for: the named one, or that at hand; an H100 for a GPU grid where there is none."""
    if named or (kind == "cuda" and not has_cuda()):
        return limit.gpu_named(named or "h100")
    from slimcore.bench.measure.canary import at_hand

    return at_hand(kind)
