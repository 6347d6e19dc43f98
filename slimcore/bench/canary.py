"""A fixed matrix product and a fixed memory copy: whether the machine is slow, whatever the code does."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

REPEATS = 7
# Edge of the product, bytes of the copy: a few milliseconds each, and more than any cache holds.
SIZES = {"cpu": (640, 2**26), "cuda": (4096, 2**28)}


class Canary:
    """Readings of one device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._warm = False

    def read(self) -> list[float]:
        """Median seconds of the product and of the copy; nothing is kept allocated. Empty where memory is lacking."""
        edge, size = SIZES[self._device]
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
            return [round(median(self._time(work) for _ in range(REPEATS)), 9) for work in works]

    def _time(self, work: Callable[[], Tensor]) -> float:
        self._wait()
        start = perf_counter()
        work()
        self._wait()
        return perf_counter() - start

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
