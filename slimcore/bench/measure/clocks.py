"""Two clocks for a piece of work: the host's, and a GPU's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

import torch

T = TypeVar("T")


def by_host(work: Callable[[], T], gpus: Sequence[int]) -> tuple[T, float]:
    """What `work` returns and its seconds on the host's clock, from when `gpus` are idle until they are again."""
    _synchronise(gpus)
    start = perf_counter()
    output = work()
    _synchronise(gpus)
    return output, perf_counter() - start


def by_events(work: Callable[[], T], gpus: Sequence[int]) -> tuple[T, float]:
    """The same by CUDA events of the current GPU: what the host takes before the first kernel starts is left out."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _synchronise(gpus)
    start.record()
    output = work()
    end.record()
    _synchronise(gpus)
    return output, start.elapsed_time(end) / 1e3


def _synchronise(gpus: Sequence[int]) -> None:
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
