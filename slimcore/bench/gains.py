"""How many times faster than dense each cell is, and how far that is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from slimcore.bench.cell import DENSE
from slimcore.bench.results import Record, grouped
from slimcore.bench.statistics import Comparison, Summary, compare, summarise

SERIES = ("model", "method", "engine", "dtype", "input_tokens", "output_tokens", "round")  # what differs in M alone


@dataclass(frozen=True)
class Time:
    """Latency of a cell among those of its series."""

    measured: Summary
    plausible: Summary  # reaches down to what a larger batch took, which is never less work
    disturbed: bool  # a larger batch took less, beyond both intervals: something else took time here


def times(cells: Iterable[Record]) -> dict[str, Time]:
    """By id, of all that ran."""
    known: dict[str, Time] = {}
    for series in grouped((c for c in cells if c["status"] == "ok"), *SERIES):
        low = high = float("inf")  # of the larger batches
        for cell in sorted(series, key=lambda c: -c["batch"]):
            own = summarise(cell["latency_s"])
            known[cell["id"]] = Time(own, replace(own, low=min(own.low, low)), disturbed=own.low > high)
            low, high = min(low, own.low), min(high, own.high)
    return known


def over_dense(cells: Iterable[Record]) -> dict[str, Comparison]:
    """Dense's latency over the cell's, by id, of all cut cells that ran where dense has a cell of the same shape."""
    ran = [c for c in cells if c["status"] == "ok"]
    known = {i: time.plausible for i, time in times(ran).items()}
    gains: dict[str, Comparison] = {}
    for alike in grouped(ran, *(name for name in SERIES if name != "method"), "batch"):
        dense = next((c for c in alike if c["method"] == DENSE), None)
        if dense is not None:
            gains |= {c["id"]: compare(known[dense["id"]], known[c["id"]]) for c in alike if c is not dense}
    return gains
