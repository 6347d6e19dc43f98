"""Memory of the process that measures: given back, run out of, and its high-water mark."""

from __future__ import annotations

import ctypes
import gc
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from slimcore.errors import is_out_of_memory, reason_of

T = TypeVar("T")
SLACK = 2**26  # bytes: workspaces of cuBLAS stay, and are no leak


class OutOfMemory(Exception):  # noqa: N818 - a result
    """Memory ran out; `kept`: bytes that are still allocated, though nothing should hold them."""

    def __init__(self, words: str, kept: int) -> None:
        super().__init__(words + (f" ({kept:,} bytes stayed allocated)" if kept else ""))
        self.kept = kept


def unless_out_of_memory(work: Callable[[], T], device: str) -> T:
    """What `work` returns. Raises OutOfMemory, with the memory that `work` had taken given back."""
    before = allocated(device)
    try:
        return work()
    except Exception as error:  # whatever it is, only memory that ran out is a result
        if not is_out_of_memory(error):
            raise
        words = reason_of(error)
        release(error)
    # Outside the except block: until it is left, the exception itself is alive.
    give_back(device)
    kept = allocated(device) - before
    raise OutOfMemory(words, kept if kept > SLACK else 0)


def give_back(device: str) -> None:
    """Return memory that nothing holds any more to the device, or to the system."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what is freed
        if trim is not None:
            trim(0)


def allocated(device: str) -> int:
    """Bytes that tensors hold on all CUDA devices; nothing is known of a CPU."""
    return _on_all_gpus(torch.cuda.memory_allocated) if device == "cuda" else 0


def forget_peak(device: str) -> bool:
    """Begin a new high-water mark; whether that can be done here."""
    if device == "cuda":
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)
        return True
    # Linux lets a process reset its own mark: see "clear_refs" in proc(5).
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak(device: str) -> int:
    """Bytes at the high-water mark. CUDA: allocated, all devices; CPU: the process's resident set."""
    if device == "cuda":
        return _on_all_gpus(torch.cuda.max_memory_allocated)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [x for x in lines if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def release(error: BaseException) -> None:
    """Drop the locals of every frame along the chain of exceptions: they hold tensors."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _on_all_gpus(figure: Callable[[int], int]) -> int:
    return sum(figure(gpu) for gpu in range(torch.cuda.device_count()))
