"""Samples of a cost, their median, its interval and its noise, over runs and nights. No torch, no pytest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

CONFIDENCE = 0.95
NORMAL = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
MEDIAN = math.pi / 2  # the variance of a median over that of a mean
MIDDLE = math.pi / 3  # and of the middle of level()
POOLED_WEIGHT = 20  # degrees of freedom that a figure pooled over cells counts for, beside a cell's own
PRIOR_WEIGHT = 4  # and those of the expectation, beside what was pooled
POWER = 1.645  # z of 95 %


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

    @property
    def shown(self) -> bool:
        """Whether they differ, whichever is more."""
        return not self.low <= 1 <= self.high


def compare(new: Summary, old: Summary) -> Comparison:
    """Ratio of medians, bounded by the ends of both intervals (conservative)."""
    return Comparison(new.centre / old.centre, new.low / old.high, new.high / old.low)


@dataclass(frozen=True)
class Level:
    """The middle of some logarithms, and its standard error from their own scatter; 0 for a single one."""

    centre: float
    error: float
    scatter: float  # standard deviation of one of them
    count: int


def level(logs: Sequence[float]) -> Level:
    """Middle and scatter; one sample in five may be anything without moving them far.

    The middle is the median of the means of all pairs (Hodges and Lehmann 1963): for the same precision it takes two
    thirds of the samples that a median takes.
    """
    scatter = robust_deviation(logs)
    middle = median((a + b) / 2 for n, a in enumerate(logs) for b in logs[n:])
    return Level(middle, scatter * math.sqrt(MIDDLE / len(logs)), scatter, len(logs))


def robust_deviation(values: Sequence[float]) -> float:
    """Standard deviation estimated by the median absolute deviation; 0 below two values."""
    if len(values) < 2:
        return 0.0
    centre = median(values)
    # The factor of small samples (Croux and Rousseeuw 1992): without it five samples look a fifth calmer than they are.
    small = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}
    n = len(values)
    return NORMAL * small.get(n, n / (n - 0.8)) * median(abs(v - centre) for v in values)


def step_deviation(values: Sequence[float]) -> float:
    """Standard deviation of one value from the steps between neighbours: a slow drift does not count as noise."""
    return robust_deviation([b - a for a, b in pairwise(values)]) / math.sqrt(2)


def shrunk(own: float, degrees: float, pooled: float) -> float:
    """A cell's standard deviation, drawn towards that of all cells: s^2 = (v own^2 + 20 pooled^2) / (v + 20)."""
    return math.sqrt((degrees * own**2 + POOLED_WEIGHT * pooled**2) / (degrees + POOLED_WEIGHT))


def pooled(groups: Iterable[Sequence[float]], prior: float) -> float:
    """The standard deviation within groups, over all of them; `prior` is what is expected before any is seen.

    The median over groups, so that a few unruly ones do not excuse the rest.
    """
    scatters = [(len(g) - 1, robust_deviation(g) ** 2) for g in groups if len(g) > 1]
    if not scatters:
        return prior
    degrees = fmean(n for n, _ in scatters)
    # A median of scaled chi-squares lies below their mean by about this factor.
    centre = median(s for _, s in scatters) / (1 - 2 / (9 * degrees)) ** 3
    return math.sqrt((degrees * centre + PRIOR_WEIGHT * prior**2) / (degrees + PRIOR_WEIGHT))


def detectable(deviation: float, threshold: float) -> float:
    """The smallest slowdown, as a share, that passes `threshold` standard deviations 95 times in 100."""
    return math.expm1((threshold + POWER) * deviation)


def repeats_for(effect: float, threshold: float, scatter: float, process: float) -> int | None:
    """Repeats in one process at which `effect` can be detected; None where no number does, for processes differ too.

    `scatter`: standard deviation of one repeat; `process`: between processes. Both of logarithms.
    """
    room = (math.log1p(effect) / (threshold + POWER)) ** 2 - process**2
    return max(1, math.ceil(MIDDLE * scatter**2 / room)) if room > 0 else None
