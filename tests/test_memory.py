"""Memory that runs out, comes back and is counted, and the clocks of a GPU; GPUs are played where there is none."""

import gc
import weakref

import pytest
import torch

from slimcore.bench.measure import memory
from slimcore.bench.measure.clocks import Timeline, by_host
from slimcore.errors import is_out_of_memory


def test_running_out_of_memory_is_a_result_and_holds_nothing():
    """The tensors of the failed call are gone, though the error was raised deep inside and in a chain."""
    born = []

    def hungry():
        big = torch.zeros(1000)
        born.append(weakref.ref(big))
        try:
            raise ValueError("first")
        except ValueError as first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB") from first

    with pytest.raises(memory.OutOfMemory, match="Tried to allocate 9 GiB") as caught:
        memory.unless_out_of_memory(hungry, "cpu")
    gc.collect()
    assert caught.value.kept == 0
    assert born[0]() is None


def test_the_cpu_allocators_refusal_is_out_of_memory_and_other_errors_are_not():
    """The message is torch's own: asked for more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="size"):
        memory.unless_out_of_memory(lambda: torch.zeros(2) @ torch.zeros(3), "cpu")


def test_memory_that_does_not_come_back_is_told(monkeypatch):
    """The allocator's figure before and after, on a CUDA device that is played here."""

    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory")

    figures = iter([100, 10**9 + 100, 100, 1000])
    monkeypatch.setattr(memory, "allocated", lambda _device: next(figures))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    told = []
    for _ in range(2):
        with pytest.raises(memory.OutOfMemory) as caught:
            memory.unless_out_of_memory(refuse, "cuda")
        told.append((str(caught.value), caught.value.kept))
    # The second time: a workspace of a library is no leak.
    assert told == [("CUDA out of memory (1,000,000,000 bytes stayed allocated)", 10**9), ("CUDA out of memory", 0)]


def test_memory_is_summed_over_the_gpus(monkeypatch):
    """A model may be spread over them: what is held, and each one's own peak."""
    held = {0: 5, 1: 7}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", held.get)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", {0: None, 1: None}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: 10 * held[gpu])
    assert memory.allocated("cuda") == 12
    assert memory.forget_peak("cuda")
    assert memory.peak("cuda") == 120


def test_all_gpus_of_a_model_are_waited_for(monkeypatch):
    """Before and after the work."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    by_host(lambda: waited.append("work"), [0, 2])
    assert waited == [0, 2, "work", 0, 2]


def test_a_timeline_waits_before_and_after_and_not_at_a_mark(monkeypatch):
    """On GPUs that are played here: the clock is an event of their own, or the host's where tokens are told there."""
    log = []

    class Event:
        def __init__(self, *, enable_timing):
            self.enabled = enable_timing

        def record(self):
            self.at = log.count("event")
            log.append("event")

        def elapsed_time(self, later):
            return 1e3 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "synchronize", log.append)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timeline = Timeline([0, 2])
    assert [timeline.mark(), timeline.mark()] == [1, 2]
    assert timeline.seconds() == [1.0, 2.0]
    assert log == [0, 2, "event", "event", "event", 0, 2]
    log.clear()
    timeline = Timeline([1], on_host=True)
    timeline.mark()
    assert timeline.seconds()[0] > 0
    assert log == [1, 1]
