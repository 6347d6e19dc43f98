"""What a grid is expected to take, before anything is measured: costs without weights, limits, seconds, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slimcore.bench.grid.cells import DENSE, DTYPES, Cell, parse_method
from slimcore.bench.grid.limit import Device, least_bytes, least_seconds, prefill
from slimcore.bench.markdown import tabulated
from slimcore.units import human

if TYPE_CHECKING:
    from slimcore.bench.measure.timing import Protocol

Record = dict[str, Any]

# Guesses, good to a factor of two, from an H200 (torch 2.11) and from two CPU cores: how near to its limit generation
# comes, what a layer costs the host to launch, to compile, and to build.
EFFICIENCY = {"cuda": 0.6, "cpu": 0.3}
LAUNCH = {"eager": 6e-4, "compiled": 5e-5}  # seconds a layer and step
COMPILING = {"cuda": 0.8, "cpu": 2.5}  # seconds a layer
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


def costs(cells: Iterable[Cell]) -> dict[tuple[str, str], Record]:
    """Subjects by (model, method) as results have them: label and footprint, from shapes alone."""
    from slimcore.cost import footprint
    from slimcore.methods import unscored
    from slimcore.models import load_meta
    from slimcore.selection import select
    from slimcore.surgery import prune_

    found: dict[tuple[str, str], Record] = {}
    for cell in cells:
        if cell.subject in found:
            continue
        model, cut = load_meta(cell.model, dtype=DTYPES[cell.dtype]), parse_method(cell.method)
        if cut is not None:
            scores = unscored(model, method=cut.method.name)
            prune_(model, select(scores, **cut.budget.as_dict(), multiple_of=cut.multiple_of))  # type: ignore[arg-type]
        found[cell.subject] = {
            "model": cell.model,
            "method": cell.method,
            "label": DENSE if cut is None else cut.label,
            "footprint": footprint(model).as_dict(),
            "perplexity": None,
        }
    return found


def forecast(
    cells: Sequence[Cell], subjects: Mapping[tuple[str, str], Record], device: Device, protocol: Protocol
) -> list[Forecast]:
    """Each cell on `device`, in the given order."""
    lost: set[Cell] = set()  # cells of batch 0: what no larger batch is tried for
    found = []
    for cell in cells:
        cost = subjects[cell.subject]["footprint"]
        shape = (cell.batch, cell.input_tokens, cell.output_tokens)
        least, memory = least_seconds(cost, shape, device), least_bytes(cost, shape)
        launched = cost["layers"] * LAUNCH.get(cell.engine, 0.0)
        first = max(prefill(cost, *shape[:2]).seconds(device) / EFFICIENCY[cell.device], launched)
        seconds = max(least / EFFICIENCY[cell.device], first + (cell.output_tokens - 1) * launched)
        fits = memory <= device.memory
        measuring = seconds if fits else 0.0 if replace(cell, batch=0) in lost else seconds
        if fits:
            warmups, repeats = protocol.expected(seconds, first)
            measuring = (warmups + repeats) * seconds + (1 + repeats) * first + _once(cell, cost["layers"])
        else:
            lost.add(replace(cell, batch=0))
        found.append(Forecast(cell, least, seconds, measuring, memory, fits))
    return found


def _once(cell: Cell, layers: int) -> float:
    """Seconds that only the first run of a shape takes."""
    if cell.engine == "compiled":
        return COMPILING[cell.device] * layers
    return KERNELS * cell.output_tokens if cell.device == "cuda" and cell.engine == "eager" else 0.0


def building(subjects: Iterable[Record], device: str) -> float:
    """Seconds that building them takes, expected, on a kind of device."""
    one, byte = BUILD[device]
    return sum((one + byte * float(s["footprint"]["weight_bytes"]) for s in subjects), 0.0)


def described(forecasts: Sequence[Forecast], subjects: Mapping[tuple[str, str], Record], device: Device) -> list[str]:
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


def limits(forecasts: Sequence[Forecast], subjects: Mapping[tuple[str, str], Record], device: Device) -> list[str]:
    """A row a subject and lengths: sizes, tokens a second at the limit, the largest batch that can fit."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for f in forecasts:
        cost, cell = subjects[f.cell.subject]["footprint"], f.cell
        speed = f"{cell.batch * cell.output_tokens / f.least:,.0f} (M{cell.batch})"
        key = (*cell.subject, f"{cell.input_tokens} in, {cell.output_tokens} out")
        row = rows.setdefault(
            key,
            {
                "model": cell.model,
                "method": cell.method,
                "tokens": key[2],
                "parameters": f"{cost['parameters']:,}",
                "weights": human(cost["weight_bytes"], "B"),
                "KV cache/token": f"{cost['kv_bytes_per_token']:,} B",
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


def within(forecasts: Sequence[Forecast], subjects: Mapping[tuple[str, str], Record], seconds: float) -> set[Cell]:
    """The cells to measure in `seconds`, the most telling first; the first one always.

    Short panels before long ones, and in each the ends of the batches before the points between them, over all
    subjects: whatever is there of a figure compares them.
    """
    panels = list(dict.fromkeys((f.cell.output_tokens, f.cell.input_tokens) for f in forecasts))
    batches = outside_in(sorted({f.cell.batch for f in forecasts}))
    chosen: set[Cell] = set()
    built: set[tuple[str, str]] = set()
    left = seconds
    for one in sorted(
        forecasts,
        key=lambda f: (panels.index((f.cell.output_tokens, f.cell.input_tokens)), batches.index(f.cell.batch)),
    ):
        new = [] if one.cell.subject in built else [subjects[one.cell.subject]]
        left -= one.measuring + building(new, one.cell.device)
        if left < 0 and chosen:
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


def as_results(forecasts: Iterable[Forecast]) -> list[Record]:
    """Forecasts as cells of results at their limit, to be drawn."""
    return [
        f.cell.as_dict() | {"status": "ok" if f.fits else "oom", "latency_s": [f.least] if f.fits else []}
        for f in forecasts
    ]
