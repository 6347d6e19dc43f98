"""A fixed matrix product, a memory copy, and launches: whether the machine is slow, whatever the code does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from slimcore.bench.grid.limit import CANARY, CONTEXT, LAUNCHES, Device, seen
from slimcore.bench.measure.clocks import by_events, by_host

REPEATS = 7


class Canary:
    """Readings of one device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._warm = False

    def read(self) -> list[float]:
        """Median seconds of the product and of the copy, and on a GPU of its host launching a number of operators.

        Nothing is kept allocated. Empty where memory is lacking.
        """
        edge, size = CANARY[self._device]
        kind = torch.float16 if self._device == "cuda" else torch.float32
        try:
            a, b = (torch.full((edge, edge), 0.5, dtype=kind, device=self._device) for _ in range(2))
            out = torch.empty_like(a)
            source = torch.zeros(size, dtype=torch.uint8, device=self._device)
            target = torch.empty_like(source)
        except (torch.OutOfMemoryError, MemoryError):
            return []
        works: tuple[Callable[[], Tensor], ...] = (lambda: torch.mm(a, b, out=out), lambda: target.copy_(source))
        with torch.inference_mode():
            if not self._warm:
                _ = [self._time(work) for work in works for _ in range(3)]
                self._warm = True
            _ = [self._time(work) for work in works]
            read = [median(self._time(work) for _ in range(REPEATS)) for work in works]
            if self._device == "cuda":
                read.append(median(by_host(lambda: _launches(out[0, 0]), (0,)) for _ in range(REPEATS)))
            return [round(seconds, 9) for seconds in read]

    def _time(self, work: Callable[[], Tensor]) -> float:
        """The device's own seconds: what the host takes to launch is read apart from them."""
        return by_events(work) if self._device == "cuda" else by_host(work, ())


def _launches(number: Tensor) -> Tensor:
    for _ in range(LAUNCHES):
        number.mul_(1)
    return number


def at_hand(device: str) -> Device:
    """The peaks of the device at hand, by some readings, and the memory that is free on it."""
    canary = Canary(device)
    measured = seen(device, [canary.read() for _ in range(5)])
    assert measured is not None
    if device == "cuda":
        return replace(measured, name=torch.cuda.get_device_name(0), memory=torch.cuda.mem_get_info()[0] - CONTEXT)
    import psutil

    return replace(measured, memory=psutil.virtual_memory().available)
