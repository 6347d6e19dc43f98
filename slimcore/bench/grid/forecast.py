"""What a grid is expected to take, before anything is measured: costs without weights, limits, seconds, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimcore.bench.grid.cells import DENSE, DTYPES, WHOLE, Cell, Key, parse_method
from slimcore.bench.grid.limit import Counted, Device, least_bytes, least_seconds, prefill
from slimcore.bench.markdown import tabulated
from slimcore.cost import Footprint, footprint
from slimcore.units import human

if TYPE_CHECKING:
    from slimcore.bench.measure.protocol import Protocol

# Guesses, good to a factor of two, from an H200 (torch 2.11) and from two CPU cores: how near to its limit generation
# comes, what a layer costs the host to launch, to compile, and to build.
EFFICIENCY = {"cuda": 0.6, "cpu": 0.3}
LAUNCH = {"eager": 6e-4, "compiled": 5e-5}  # seconds a layer and step
COMPILING = {"cuda": 0.8, "cpu": 2.5}  # seconds a layer
STARTING = 90.0  # seconds that vLLM takes to start, which it does once a subject
KERNELS = 0.045  # seconds for each length of the cache: cuDNN plans its attention anew for each, once a shape
BUILD = {"cuda": (2.0, 4e-10), "cpu": (10.0, 1e-9)}  # seconds for a subject, and for each byte of its weights


@dataclass(frozen=True)
class Forecast:
    """One cell, before it is measured."""

    cell: Cell
    least: float  # seconds of one generate, by the limit
    seconds: float  # of one generate, expected
    measuring: float  # of the whole cell, expected
    memory: int  # bytes, at least
    fits: bool


@dataclass(frozen=True)
class Planned:
    """A subject before it is built."""

    label: str  # in figures
    costs: Footprint


def planned(cells: Iterable[Cell]) -> dict[Key, Planned]:
    """The subjects of `cells`, counted from configs alone: no weights are read."""
    from slimcore.methods import unscored
    from slimcore.models import load_meta
    from slimcore.selection import select
    from slimcore.surgery import prune_

    found: dict[Key, Planned] = {}
    for cell in cells:
        if cell.subject in found:
            continue
        model, cut = load_meta(cell.model, dtype=DTYPES[cell.dtype]), parse_method(cell.method)
        if cut is not None:
            scores = unscored(model, method=cut.method.name)
            prune_(model, select(scores, **cut.budget.as_dict(), multiple_of=cut.multiple_of))  # type: ignore[arg-type]
        found[cell.subject] = Planned(DENSE if cut is None else cut.label, footprint(model))
    return found


def forecast(
    cells: Sequence[Cell], subjects: Mapping[Key, Counted], device: Device, protocol: Protocol
) -> list[Forecast]:
    """Each cell on `device`, in the given order; one that a longer one tells of takes no time."""
    memory = {cell: least_bytes(subjects[cell.subject].costs, cell.shape) for cell in cells}
    longest: dict[Cell, int] = {}  # ladder of lengths -> output tokens of the longest that fits
    for cell in cells:
        if memory[cell] <= device.memory and cell.engine not in WHOLE:
            longest[cell.ladder] = max(cell.output_tokens, longest.get(cell.ladder, 0))
    lost: set[Cell] = set()  # cells of batch 0: what no larger batch is tried for
    found = []
    for cell in cells:
        cost = subjects[cell.subject].costs
        least = least_seconds(cost, cell.shape, device)
        launched = cost.layers * LAUNCH.get(cell.engine, 0.0)
        first = max(prefill(cost, *cell.shape[:2]).seconds(device) / EFFICIENCY[cell.device], launched)
        seconds = max(least / EFFICIENCY[cell.device], first + (cell.output_tokens - 1) * launched)
        fits = memory[cell] <= device.memory
        if not fits:
            measuring = 0.0 if cell.with_batch(0) in lost else seconds
            lost.add(cell.with_batch(0))
        elif cell.output_tokens < longest.get(cell.ladder, 0):
            measuring = 0.0
        else:
            warmups, repeats = protocol.expected(seconds)
            measuring = (warmups + repeats) * seconds + once(cell, cost.layers)
        found.append(Forecast(cell, least, seconds, measuring, memory[cell], fits))
    return found


def once(cell: Cell, layers: int) -> float:
    """Seconds that only the first run of a shape takes."""
    if cell.engine == "compiled":
        return COMPILING[cell.device] * layers
    if cell.engine == "vllm":
        return STARTING
    return KERNELS * cell.output_tokens if cell.device == "cuda" and cell.engine == "eager" else 0.0


def building(subjects: Iterable[Counted], device: str) -> float:
    """Seconds that building them takes, expected, on a kind of device."""
    one, byte = BUILD[device]
    return sum((one + byte * s.costs.weight_bytes for s in subjects), 0.0)


def described(forecasts: Sequence[Forecast], subjects: Mapping[Key, Counted], device: Device) -> list[str]:
    """A row a cell, and the whole, for the terminal."""
    rows = [
        {
            "cell": f.cell.id,
            "limit (s)": f"{f.least:.3g}",
            "expected (s)": f"{f.seconds:.3g}" if f.fits else "out of memory",
            "measuring (s)": f"{f.measuring:.0f}",
            "memory, at least": human(f.memory, "B"),
        }
        for f in forecasts
    ]
    lost = sum(not f.fits for f in forecasts)
    total = sum(f.measuring for f in forecasts) + building(subjects.values(), forecasts[0].cell.device)
    return [
        *tabulated(rows).splitlines(),
        "",
        _whole(f"{len(forecasts)} cells of {len(subjects)} subjects", total, lost, device),
        "Measure it in pieces: --perf-budget 10m, then --perf-resume --perf-budget 10m until nothing is left.",
    ]


def _whole(what: str, seconds: float, lost: int, device: Device) -> str:
    return f"{what} on {_said(device)}: about {_duration(seconds)}, to a factor of two; {lost} cannot fit."


def limits(forecasts: Sequence[Forecast], subjects: Mapping[Key, Counted], device: Device) -> list[str]:
    """A row a subject and lengths: sizes, tokens a second at the limit, the largest batch that can fit."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for f in forecasts:
        cost, cell = subjects[f.cell.subject].costs, f.cell
        speed = f"{cell.batch * cell.output_tokens / f.least:,.0f} (M{cell.batch})"
        key = (*cell.subject, f"{cell.input_tokens} in, {cell.output_tokens} out")
        row = rows.setdefault(
            key,
            {
                "model": cell.model,
                "method": cell.method,
                "tokens": key[2],
                "parameters": f"{cost.parameters:,}",
                "weights": human(cost.weight_bytes, "B"),
                "KV cache/token": f"{cost.kv_bytes_per_token:,} B",
                "tokens/s at most": speed,
                "at the largest M": "",
            },
        )
        if f.fits:
            row["at the largest M"] = speed
    return [f"At the limit of {_said(device)}", "", *tabulated(list(rows.values())).splitlines()]


def _said(device: Device) -> str:
    peaks = f"{human(device.flops, 'FLOP/s')}, {human(device.bandwidth, 'B/s')}"
    return f"{device.name} ({peaks}, {human(device.memory, 'B')} for tensors)"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def within(forecasts: Sequence[Forecast], subjects: Mapping[Key, Counted], seconds: float) -> set[Cell]:
    """The cells to measure in `seconds`, the most telling first; the first one always.

    For each number of input tokens the ends of the batches before the points between them, over all subjects: whatever
    is there of a figure compares them. Long outputs first, as they tell of the short ones.
    """
    inputs = list(dict.fromkeys(f.cell.input_tokens for f in forecasts))
    batches = outside_in(sorted({f.cell.batch for f in forecasts}))
    chosen: set[Cell] = set()
    built: set[Key] = set()
    left = seconds
    for one in sorted(
        forecasts,
        key=lambda f: (inputs.index(f.cell.input_tokens), batches.index(f.cell.batch), -f.cell.output_tokens),
    ):
        new = [] if one.cell.subject in built else [subjects[one.cell.subject]]
        cost = one.measuring + building(new, one.cell.device)
        left -= cost
        if cost and left < 0 and chosen:
            break
        chosen.add(one.cell)
        built.add(one.cell.subject)
    return chosen


def outside_in(values: Sequence[int]) -> list[int]:
    """First and last, then the middle, then the middles of what is left: 1 384 32 8 128 16 64 256."""
    found = list(dict.fromkeys([values[0], values[-1]]))
    gaps = [(0, len(values) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            found.append(values[middle])
            gaps += [(low, middle), (middle, high)]
    return found
