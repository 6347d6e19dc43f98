"""How many times faster than dense each cell is, and how far that is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from slimcore.bench.grid.cells import DENSE
from slimcore.bench.records.results import Record, grouped
from slimcore.bench.statistics import Comparison, Summary, compare, summarise

SERIES = ("model", "method", "engine", "dtype", "input_tokens", "output_tokens", "round")  # what differs in M alone


@dataclass(frozen=True)
class Time:
    """Latency of a cell among those of its series."""

    measured: Summary
    plausible: Summary  # reaches down to what a larger batch took, which is never less work
    disturbed: bool  # a larger batch took less, beyond both intervals: something else took time here
    gain: Comparison | None = None  # dense's latency over this one's; none where dense has no cell of the same shape


def times(cells: Iterable[Record]) -> dict[str, Time]:
    """By id, of all that ran."""
    ran = [c for c in cells if c["status"] == "ok"]
    known: dict[str, Time] = {}
    for series in grouped(ran, *SERIES):
        low = high = float("inf")  # of the larger batches
        for cell in sorted(series, key=lambda c: -c["batch"]):
            own = summarise(cell["latency_s"])
            known[cell["id"]] = Time(own, replace(own, low=min(own.low, low)), disturbed=own.low > high)
            low, high = min(low, own.low), min(high, own.high)
    for alike in grouped(ran, *(name for name in SERIES if name != "method"), "batch"):
        dense = next((known[c["id"]] for c in alike if c["method"] == DENSE), None)
        for cell in alike:
            if dense is not None and cell["method"] != DENSE:
                time = known[cell["id"]]
                known[cell["id"]] = replace(time, gain=compare(dense.plausible, time.plausible))
    return known
