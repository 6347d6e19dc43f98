"""The least time and memory a cell can take: the roofline of its prefill and of every decode step. No torch.

Williams, Waterman and Patterson 2009: work takes max(bytes / bandwidth, FLOPs / peak), on a device that does nothing
else. Weights, head, and the cache as it grows are counted from the footprint; what is launched, and how, is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from slimcore.bench.grid.cells import Cell, Key
from slimcore.cost import Footprint
from slimcore.errors import UnknownNameError

GIB = 2**30
# Of the canary: edge of the product, bytes of the copy. A few milliseconds each, and more than any cache holds.
CANARY = {"cpu": (640, 2**26), "cuda": (4096, 2**28)}
LAUNCHES = 512  # and on a GPU so many operators that its host launches
CONTEXT = 0.6 * GIB  # what CUDA and its libraries take before the first tensor


@dataclass(frozen=True)
class Device:
    """Peaks of a device."""

    name: str
    flops: float  # a second, at the cell's dtype
    bandwidth: float  # bytes a second
    memory: float  # bytes that tensors can have; infinite where it is not known


def _gpu(name: str, teraflops: float, gigabytes_a_second: float, gib: float) -> Device:
    return Device(name, 1e12 * teraflops, 1e9 * gigabytes_a_second, 0.99 * gib * GIB - CONTEXT)


# NVIDIA's data sheets and white papers: fp16 on tensor cores with fp32 sums, without sparsity.
GPUS = {
    "h100": _gpu("H100 SXM 80GB", 989.4, 3350, 80),
    "h100-pcie": _gpu("H100 PCIe 80GB", 756, 2000, 80),
    "h200": _gpu("H200 SXM 141GB", 989.4, 4800, 131.3),
    "a100-80gb": _gpu("A100 SXM 80GB", 312, 2039, 80),
    "a100-40gb": _gpu("A100 SXM 40GB", 312, 1555, 40),
    "l40s": _gpu("L40S 48GB", 362, 864, 48),
    "l4": _gpu("L4 24GB", 121, 300, 24),
    "rtx4090": _gpu("RTX 4090 24GB", 165.2, 1008, 24),
    "rtx3090": _gpu("RTX 3090 24GB", 71, 936, 24),
    "v100-32gb": _gpu("V100 SXM 32GB", 125, 900, 32),
}


def gpu_named(name: str) -> Device:
    """A device of the table. Raises UnknownNameError."""
    if name not in GPUS:
        raise UnknownNameError("GPU", name, GPUS)
    return GPUS[name]


def seen(device: str, readings: Iterable[Sequence[float]]) -> Device | None:
    """A device ("cpu", "cuda") by the best of the canary's readings there; None where none could be read."""
    read = [reading for reading in readings if reading]
    if not read:
        return None
    edge, size = CANARY[device]
    product, copy = (min(reading[n] for reading in read) for n in (0, 1))
    return Device("this device", 2 * edge**3 / product, 2 * size / copy, float("inf"))


class Counted(Protocol):
    """A subject whose costs are counted."""

    @property
    def label(self) -> str:
        """In figures."""

    @property
    def costs(self) -> Footprint:
        """Counted from its shapes."""


@dataclass(frozen=True)
class Work:
    """What a step has to do."""

    flops: float
    bytes: float

    def seconds(self, device: Device) -> float:
        """At least."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth)


def prefill(cost: Footprint, batch: int, tokens: int) -> Work:
    """The prompt of `tokens`: all layers for each, the head for the last one."""
    positions = tokens * (tokens + 1) // 2
    one = tokens * (cost.flops_per_token - cost.head_flops) + cost.head_flops
    return Work(
        batch * (one + positions * cost.flops_per_position),
        _weights(cost, batch * tokens) + batch * tokens * cost.kv_bytes_per_token,
    )


def step(cost: Footprint, batch: int, position: int) -> Work:
    """One token a row, the `position`-th: the weights once, the cache up to there."""
    return Work(
        batch * (cost.flops_per_token + position * cost.flops_per_position),
        _weights(cost, batch) + batch * position * cost.kv_bytes_per_token,
    )


def least_seconds(cost: Footprint, shape: tuple[int, int, int], device: Device) -> float:
    """Of one whole generate: `shape` is (batch, input tokens, output tokens)."""
    batch, inputs, outputs = shape
    steps = (step(cost, batch, inputs + n).seconds(device) for n in range(1, outputs))
    return prefill(cost, batch, inputs).seconds(device) + sum(steps)


def least_of(cell: Cell, subjects: Mapping[Key, Counted], device: Device) -> float | None:
    """Of a cell; None where its subject is not among `subjects`."""
    subject = subjects.get(cell.subject)
    return None if subject is None else least_seconds(subject.costs, cell.shape, device)


def cache_bytes(cost: Footprint, shape: tuple[int, int, int]) -> int:
    """Of keys and values when the last token is chosen, which is never put in."""
    batch, inputs, outputs = shape
    return batch * (inputs + outputs - 1) * cost.kv_bytes_per_token


def least_bytes(cost: Footprint, shape: tuple[int, int, int]) -> int:
    """Of memory at the last step: weights, cache, the longer cache of one layer beside the old, logits with their copy.

    What an allocator loses to fragments comes on top.
    """
    cache = cache_bytes(cost, shape)
    logits = shape[0] * cost.vocabulary * (4 + cost.weight_bytes // cost.parameters)
    return cost.weight_bytes + cache + cache // (2 * cost.layers) + logits


def largest_batch(cost: Footprint, lengths: tuple[int, int], batches: Sequence[int], device: Device) -> int:
    """Of `batches`, the largest that can fit; 0 where none can."""
    return max((m for m in batches if least_bytes(cost, (m, *lengths)) <= device.memory), default=0)


def _weights(cost: Footprint, tokens: int) -> int:
    """Bytes read: all weights but the embedding, of which a token reads its row."""
    rows = tokens * (cost.embedding_bytes // cost.vocabulary)
    return cost.weight_bytes - cost.embedding_bytes + min(rows, cost.embedding_bytes)
