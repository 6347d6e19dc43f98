"""Timing one cell: warm-up, synchronised repeats, memory, and running out of memory as a result."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from slimcore.bench.measure.clocks import by_events, by_host
from slimcore.bench.measure.engines import engine_named
from slimcore.bench.measure.environment import energy
from slimcore.bench.statistics import summarise
from slimcore.errors import TextError, is_out_of_memory, reason_of
from slimcore.structure import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slimcore.bench.grid.cells import Cell
    from slimcore.bench.measure.canary import Canary


T = TypeVar("T")
SLACK = 2**26  # bytes: workspaces of cuBLAS stay, and are no leak
FEW = 3  # repeats, where they are so long that the time is used


@dataclass(frozen=True)
class Protocol:
    """How long a cell is warmed up and repeated."""

    seconds: float = 6.0  # of timed repeats, after which no further one starts; half of it for warm-ups
    repeats: tuple[int, int] = (5, 30)  # at least, while there is time; at most
    tight: float = 0.01  # relative half-width of the median's interval that ends a cell early
    warmups: tuple[int, int] = (3, 4)  # at least, while there is time; at most
    steady: float = 0.02  # the last three warm-ups agree within this
    sample: bool = False  # draw tokens rather than take the likeliest
    events: bool = False  # time by CUDA events rather than by the host's clock

    def wants_more(self, samples: Sequence[float], spent: float) -> bool:
        """Whether `samples`, which took `spent` seconds, are to be more: until they are tight or the time is used."""
        least, most = self.repeats
        if spent >= self.seconds:
            return len(samples) < min(least, FEW)
        return len(samples) < least or (len(samples) < most and summarise(samples).spread > self.tight)

    def wants_warming(self, seconds: Sequence[float]) -> bool:
        """Whether warm-ups, the latest of which took `seconds`, are to go on: until the last three agree.

        Fewer where runs are long, as those warm up by themselves. The first may have compiled, or chosen kernels for
        each length of the cache: its time does not count.
        """
        least, most = self.warmups
        if not seconds or len(seconds) >= most:
            return not seconds
        if sum(seconds[1:]) >= self.seconds / 2:
            return False
        return len(seconds) < least or not _steady(seconds[-3:], self.steady)

    def again(self, samples: Sequence[float]) -> int:
        """How many repeats a fresh process takes to measure a cell again that took `samples`."""
        return max(min(self.repeats[0], len(samples)), len(samples) // 2)

    def expected(self, whole: float, first: float) -> tuple[int, int]:
        """Warm-ups and repeats of a cell whose generate takes `whole` seconds, `first` for one token."""
        warmups: list[float] = []
        while len(warmups) < self.warmups[0] and self.wants_warming(warmups):
            warmups.append(whole)
        least, most = self.repeats
        in_time = math.ceil(min(self.seconds / (whole + first), most))
        return len(warmups), max(min(least, FEW), in_time)


# The published measurement of the figure: 10 and 20 runs, sampled, CUDA events.
PAPER = Protocol(seconds=math.inf, repeats=(20, 20), warmups=(10, 10), sample=True, events=True)


@dataclass
class Timing:
    """Raw figures of one cell; empty where it did not run."""

    status: str  # ok, oom
    detail: str = ""
    latency_s: list[float] = field(default_factory=list)  # one whole generate each
    ttft_s: list[float] = field(default_factory=list)  # generate of one token, in pairs with latency_s
    warmup_s: list[float] = field(default_factory=list)
    canary_s: list[list[float]] = field(default_factory=list)  # readings before and after: see Canary
    peak_bytes: int | None = None  # CUDA: allocated; CPU: resident set of the process; None where it cannot be read
    joules: float | None = None  # a generated token, all rows counted; None where the device does not say
    kept_bytes: int = 0  # CUDA: that stayed allocated after running out of memory

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; times to a nanosecond."""
        rounded = {k: [round(s, 9) for s in getattr(self, k)] for k in ("latency_s", "ttft_s", "warmup_s")}
        rest = {name: getattr(self, name) for name in ("canary_s", "peak_bytes", "joules", "kept_bytes")}
        return {"status": self.status, "detail": self.detail} | rounded | rest


def measure(model: PreTrainedModel, cell: Cell, protocol: Protocol, canary: Canary | None = None) -> Timing:
    """Time `cell` on `model`, which lies on the cell's device. Out of memory is a Timing of status `oom`.

    With a `canary`, that is read before and after.
    """
    timing, refusal = unless_out_of_memory(lambda: _measure(model, cell, protocol, canary), cell.device)
    return timing or Timing("oom", refusal.words, kept_bytes=refusal.kept)


@dataclass(frozen=True)
class Refusal:
    """Memory ran out."""

    words: str = ""  # the allocator's
    kept: int = 0  # bytes that are still allocated, though nothing should hold them


class Generation:
    """One cell on its model, ready to be timed."""

    def __init__(self, model: PreTrainedModel, cell: Cell, protocol: Protocol) -> None:
        _check_context(model, cell)
        self._protocol = protocol
        self._engine, self._model, self._new = engine_named(cell.engine), model, cell.output_tokens
        special = {i for i in (model.config.bos_token_id, model.config.pad_token_id) if isinstance(i, int)}
        eos = model.config.eos_token_id
        special |= {eos} if isinstance(eos, int) else set(eos or ())
        shape = (cell.batch, cell.input_tokens)
        self._ids = prompt(model.config.vocab_size, special, shape, seed=0).to(model.device)
        self.gpus = _gpus_of(model) if cell.device == "cuda" else []

    def whole(self) -> float:
        """Seconds of one whole generate."""
        return self._timed(self._new)

    def first(self) -> float:
        """Seconds to the first token."""
        return self._timed(1)

    def warm_up(self, seconds: list[float]) -> None:
        """Run as often as the protocol asks; `seconds` takes each."""
        while self._protocol.wants_warming(seconds):
            seconds.append(self.whole())

    def _timed(self, new_tokens: int) -> float:
        """Generate once, check the length of every row, and return the seconds it took."""
        clock = by_events if self._protocol.events and self._ids.is_cuda else by_host
        output, seconds = clock(
            lambda: self._engine(self._model, self._ids, new_tokens, sample=self._protocol.sample), self.gpus
        )
        expected = (self._ids.shape[0], self._ids.shape[1] + new_tokens)
        if tuple(output.shape) != expected:
            raise RuntimeError(f"generate returned {tuple(output.shape)}, not {expected}: it stopped early")
        return seconds


def _check_context(model: PreTrainedModel, cell: Cell) -> None:
    """Raise TextError where prompt and new tokens are more than the model's context."""
    context = decoder(model).context
    if context is not None and cell.input_tokens + cell.output_tokens > context:
        raise TextError(
            f"{cell.input_tokens} input + {cell.output_tokens} output tokens are more than the {context} of the model's"
            " context: give shorter --perf-inputs or --perf-outputs"
        )


def unless_out_of_memory(work: Callable[[], T], device: str) -> tuple[T | None, Refusal]:
    """What `work` returns; or None and the allocator's words, with the memory `work` had taken given back."""
    before = allocated(device)
    try:
        return work(), Refusal()
    except Exception as error:  # whatever it is, only memory that ran out is a result
        if not is_out_of_memory(error):
            raise
        words = reason_of(error)
        release(error)
    # Outside the except block: until it is left, the exception itself is alive.
    give_back(device)
    kept = allocated(device) - before
    kept = kept if kept > SLACK else 0
    return None, Refusal(words + (f" ({kept:,} bytes stayed allocated)" if kept else ""), kept)


def give_back(device: str) -> None:
    """Return memory that nothing holds any more to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def prompt(vocabulary: int, special: set[int], shape: tuple[int, int], seed: int) -> Tensor:
    """Seeded ids (M, T) without special tokens; no two rows alike while the vocabulary lasts."""
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special])
    generator = torch.Generator().manual_seed(seed)
    ids = ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    rows = min(shape[0], len(ordinary))
    ids[:rows, 0] = ordinary[torch.randperm(len(ordinary), generator=generator)[:rows]]
    return ids


def _measure(model: PreTrainedModel, cell: Cell, protocol: Protocol, canary: Canary | None) -> Timing:
    timing = Timing("ok")
    generation = Generation(model, cell, protocol)
    with quiet():
        with peak_memory(cell.device, timing):
            timing.warmup_s.append(generation.whole())
        generation.warm_up(timing.warmup_s)
        generation.first()
        before = canary.read() if canary else []
        spent = energy(generation.gpus)
        _repeat(generation, timing, protocol)
        if spent is not None:
            tokens = cell.batch * (cell.output_tokens + 1) * len(timing.latency_s)
            timing.joules = round(((energy(generation.gpus) or spent) - spent) / tokens, 6)
        after = canary.read() if canary else []
    timing.canary_s = [reading for reading in (before, after) if reading]
    return timing


def _steady(seconds: Sequence[float], within: float) -> bool:
    return max(seconds) <= min(seconds) * (1 + within)


def _repeat(generation: Generation, timing: Timing, protocol: Protocol) -> None:
    """Pairs of (first token, whole) until the median is tight or the time is used."""
    spent = 0.0
    while protocol.wants_more(timing.latency_s, spent):
        timing.ttft_s.append(generation.first())
        timing.latency_s.append(generation.whole())
        spent += timing.ttft_s[-1] + timing.latency_s[-1]


def _gpus_of(model: PreTrainedModel) -> list[int]:
    """Those its weights lie on; the first one where the engine has copied them and sent the model's own away."""
    return sorted({p.device.index for p in model.parameters() if p.is_cuda}) or [0]


def allocated(device: str) -> int:
    """Bytes that tensors hold on all CUDA devices; nothing is known of a CPU."""
    return _on_all_gpus(torch.cuda.memory_allocated) if device == "cuda" else 0


def _on_all_gpus(figure: Callable[[int], int]) -> int:
    return sum(figure(gpu) for gpu in range(torch.cuda.device_count()))


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection and no autograd while timing."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def peak_memory(device: str, timing: Timing) -> Iterator[None]:
    """Set `timing.peak_bytes` to the high-water mark inside the block."""
    if device == "cuda":
        for gpu in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(gpu)
        yield
        timing.peak_bytes = _on_all_gpus(torch.cuda.max_memory_allocated)
        return
    # Linux lets a process reset its own mark: see "clear_refs" in proc(5). Elsewhere the figure stays empty.
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        clear.write_text("5", encoding="ascii")
    except OSError:
        yield
        return
    yield
    (line,) = [x for x in status.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM:")]
    timing.peak_bytes = int(line.split()[1]) * 1024


def release(error: BaseException) -> None:
    """Drop the locals of every frame along the chain of exceptions: they hold tensors."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
