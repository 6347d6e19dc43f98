"""How many times faster than dense each cell is, and how far that is shown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from slimcore.bench.grid.cells import DENSE
from slimcore.bench.judge.levels import log_ratios
from slimcore.bench.records.records import Measurement, Pairs
from slimcore.bench.records.results import grouped
from slimcore.bench.statistics import Comparison, Summary, compare, level, summarise

SERIES = ("model", "method", "engine", "dtype", "input_tokens", "output_tokens", "round")  # what differs in M alone
FEW = 6  # pairs: below, their scatter is not known well enough for an interval


@dataclass(frozen=True)
class Time:
    """Latency of a cell among those of its series."""

    measured: Summary
    plausible: Summary  # reaches down to what a larger batch took, which is never less work
    disturbed: bool  # a larger batch took less, beyond both intervals: something else took time here
    gain: Comparison | None = None  # dense's latency over this one's; none where dense has no cell of the same shape
    paired: bool = False  # the gain is of generates in turn with dense, not of two separate measurements


def times(cells: Iterable[Measurement]) -> dict[str, Time]:
    """By id, of all that ran."""
    ran = [c for c in cells if c.ran]
    known: dict[str, Time] = {}
    for series in grouped(ran, *SERIES):
        low = high = float("inf")  # of the larger batches
        for one in sorted(series, key=lambda c: -c.cell.batch):
            own = summarise(one.times.latency_s)
            known[one.id] = Time(own, replace(own, low=min(own.low, low)), disturbed=own.low > high)
            low, high = min(low, own.low), min(high, own.high)
    for alike in grouped(ran, *(name for name in SERIES if name != "method"), "batch"):
        dense = next((known[c.id] for c in alike if c.cell.method == DENSE), None)
        for one in alike:
            time = known[one.id]
            if one.dense is not None:
                known[one.id] = replace(time, gain=_paired(one.dense), paired=True)
            elif dense is not None and one.cell.method != DENSE:
                known[one.id] = replace(time, gain=compare(dense.plausible, time.plausible))
    return known


def _paired(dense: Pairs) -> Comparison:
    """The middle of the pairs' ratios with its 95 % interval; the whole range where there are few."""
    logs = [-log for log in log_ratios(dense)]
    middle = level(logs)
    reach = 1.96 * middle.error
    low, high = (min(logs), max(logs)) if len(logs) < FEW else (middle.centre - reach, middle.centre + reach)
    return Comparison(math.exp(middle.centre), math.exp(low), math.exp(high))
