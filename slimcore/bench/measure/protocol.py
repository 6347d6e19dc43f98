"""How long a cell is warmed up and repeated. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slimcore.bench.statistics import summarise

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

    def wants_more(self, series: Sequence[Sequence[float]], spent: float) -> bool:
        """Whether the samples, in all took `spent` seconds, are to be more: until each series is tight or time is up.

        `series`: of what is measured in turn, and of their ratios; equally long.
        """
        least, most = self.repeats
        count = len(series[0])
        if spent >= self.seconds:
            return count < min(least, FEW)
        return count < least or (count < most and any(summarise(one).spread > self.tight for one in series))

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
        return len(seconds) < least or max(seconds[-3:]) > min(seconds[-3:]) * (1 + self.steady)

    def again(self, samples: Sequence[float]) -> int:
        """How many repeats a fresh process takes to measure a cell again that took `samples`."""
        return max(min(self.repeats[0], len(samples)), len(samples) // 2)

    def expected(self, whole: float) -> tuple[int, int]:
        """Warm-ups and repeats of a cell whose generate takes `whole` seconds."""
        warmups: list[float] = []
        while len(warmups) < self.warmups[0] and self.wants_warming(warmups):
            warmups.append(whole)
        least, most = self.repeats
        return len(warmups), max(min(least, FEW), math.ceil(min(self.seconds / whole, most)))


# The published measurement of the figure: 10 and 20 runs, sampled.
PAPER = Protocol(seconds=math.inf, repeats=(20, 20), warmups=(10, 10), sample=True)
