"""Two clocks, the host's and a GPU's own: for a piece of work, and for each token of a generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch


def by_host(work: Callable[[], object], gpus: Sequence[int]) -> float:
    """Seconds of `work` on the host's clock, from when `gpus` are idle until they are again."""
    synchronise(gpus)
    start = perf_counter()
    work()
    synchronise(gpus)
    return perf_counter() - start


def by_events(work: Callable[[], object]) -> float:
    """Seconds of `work` by CUDA events of the current GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronise((torch.cuda.current_device(),))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


class Timeline:
    """When each token of one generate was there; taking a mark waits for nothing."""

    def __init__(self, gpus: Sequence[int], *, on_host: bool = False) -> None:
        """Begin, once `gpus` are idle: by events of the current one, or on the host's clock where there is none.

        `on_host`: on the host's clock all the same, for an engine that tells its tokens there.
        """
        self._gpus = gpus
        self._now: Callable[[], Any] = _recorded if gpus and not on_host else perf_counter
        synchronise(gpus)
        self._start: Any = self._now()
        self._marks: list[Any] = []

    def mark(self) -> int:
        """One more token is there (on a GPU: will be, in the order of its work); how many that makes."""
        self._marks.append(self._now())
        return len(self._marks)

    def seconds(self) -> list[float]:
        """Of each mark since the beginning; waits for the GPUs."""
        synchronise(self._gpus)
        if self._now is _recorded:
            return [self._start.elapsed_time(mark) / 1e3 for mark in self._marks]
        return [mark - self._start for mark in self._marks]


def synchronise(gpus: Sequence[int]) -> None:
    """Wait until each of `gpus` is idle."""
    for gpu in gpus:
        torch.cuda.synchronize(gpu)


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
