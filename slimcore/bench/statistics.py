"""Samples of a cost, their median and its interval, and the ratio of two. No torch, no pytest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A median with a distribution-free confidence interval."""

    centre: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.centre


def summarise(samples: Sequence[float]) -> Summary:
    """Median and its 95 % interval from order statistics; the whole range where there are fewer than six samples."""
    if not samples or not all(math.isfinite(s) and s > 0 for s in samples):
        raise ValueError(f"samples must be positive numbers, one at least (got {list(samples)})")
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return Summary(median(ordered), ordered[rank], ordered[-1 - rank], len(ordered))


def _rank(count: int) -> int:
    """Largest r such that [x_(r+1), x_(n-r)] covers the median with the confidence asked: binomial(n, 1/2)."""
    rank, below = 0, 0.5**count
    while True:
        below += math.comb(count, rank + 1) * 0.5**count
        if 2 * below > 1 - CONFIDENCE:
            return rank
        rank += 1


@dataclass(frozen=True)
class Comparison:
    """Ratio new / old of two costs; above 1 is worse."""

    ratio: float
    low: float
    high: float


def compare(new: Summary, old: Summary) -> Comparison:
    """Ratio of medians, bounded by the ends of both intervals (conservative)."""
    return Comparison(new.centre / old.centre, new.low / old.high, new.high / old.low)
