"""What a cell is judged against: the accepted nights of its machine, or another version measured in turn with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, variance
from typing import Protocol

from slimcore.bench.judge.levels import canary_of, corrected, doubt, host_moved, ratios
from slimcore.bench.judge.rules import RULES, SCREEN
from slimcore.bench.records.records import Against, Measurement, Status, Times
from slimcore.bench.statistics import MEDIAN, MIDDLE, Level, detectable, robust_deviation, shrunk, summarise


@dataclass(frozen=True)
class Shift:
    """How far new lies above old, in logarithms, and how well that is known."""

    d: float
    s: float
    hidden: float = 0.0  # standard deviation of what one pair of processes cannot show

    @property
    def smallest(self) -> float:
        """The slowdown, as a share, that would have been suspected 95 times in 100."""
        return detectable(math.hypot(self.s, self.hidden), SCREEN)

    @property
    def z(self) -> float:
        """In standard deviations."""
        return self.d / self.s

    def interval(self) -> tuple[float, float]:
        """95 % interval of the change, as shares."""
        return math.expm1(self.d - 1.96 * self.s), math.expm1(self.d + 1.96 * self.s)


class Reference(Protocol):
    """What a cell is judged against."""

    @property
    def status(self) -> Status:
        """Whether it ran there."""

    @property
    def name(self) -> str:
        """In `as NAME`."""

    def shift(self, measured: Measurement) -> Shift:
        """Of the first measurement."""

    def fresh_shift(self, measured: Measurement) -> Shift | None:
        """Of the fresh processes alone; None where it was not measured again."""

    def words(self, measured: Measurement) -> list[str]:
        """Lines on what was compared."""


@dataclass(frozen=True)
class Nights:
    """The accepted nights of one cell."""

    status: Status
    nights: Sequence[Times]  # empty where the status is not ok
    pooled: float  # standard deviation from night to night, over all cells of the baseline
    name: str = "accepted"

    @cached_property
    def centres(self) -> list[float]:
        """The level of each night, canary's taken off."""
        return [corrected(night).centre for night in self.nights]

    @cached_property
    def latency(self) -> float:
        """The median over nights, in seconds."""
        return median(_middle(night) for night in self.nights)

    def shift(self, measured: Measurement) -> Shift:
        """Against the middle of the nights; a measurement noisier than nights are counts with its own noise."""
        now = corrected(measured.times)
        s = math.hypot(max(self._deviation, now.error), self._doubt(measured, measured.times), self._error)
        return Shift(now.centre - median(self.centres), s)

    def fresh_shift(self, measured: Measurement) -> Shift | None:
        """The mean over processes, which share one canary; rounds of one process share what that is like by chance."""
        if not measured.fresh:
            return None
        centres = [corrected(times).centre for times in measured.fresh]
        one = _deviation_of_processes(centres, self._deviation)
        if not measured.cell.timed:
            one /= math.sqrt(len(centres))
        first = measured.fresh[0]
        s = math.hypot(one, canary_of(first).error, self._doubt(measured, first), self._error)
        return Shift(fmean(centres) - median(self.centres), s)

    def words(self, measured: Measurement) -> list[str]:
        """Medians of both, and the canary's."""
        new = measured.fresh or (measured.times,)
        count = len(self.nights)
        again = "further rounds" if measured.cell.timed else "fresh processes"
        lines = [
            f"median latency: {self.latency:.4g} s over {count} accepted"
            f" {'night' if count == 1 else 'nights'} -> {median(map(_middle, new)):.4g} s"
            + (f" in {len(new)} {again}" if measured.fresh else "")
        ]
        if self.nights[0].canary and new[0].canary:
            drift = share(math.expm1(median(canary_of(times).centre for times in new) - self._canary))
            lines.append(f"canary: the machine takes {drift} for a fixed work (taken off above)")
        if host := host_moved(new[:1], self.nights):
            lines.append(
                f"host: it takes {share(math.expm1(host))} to launch operators (not taken off; doubted for it)"
            )
        return lines

    def _doubt(self, measured: Measurement, times: Times) -> float:
        """What taking off the canary's shift, and leaving the host's in, may be wrong by."""
        canary = canary_of(times).centre - self._canary
        return doubt(measured.cell.device, canary, host_moved([times], self.nights))

    @cached_property
    def _canary(self) -> float:
        return median(canary_of(night).centre for night in self.nights)

    @cached_property
    def _deviation(self) -> float:
        """Of one night's level."""
        return shrunk(robust_deviation(self.centres), len(self.nights) - 1, self.pooled)

    @cached_property
    def _error(self) -> float:
        """Standard deviation of the middle of the nights."""
        n = len(self.nights)
        return self._deviation * math.sqrt((MEDIAN if n > 2 else 1) / n)


@dataclass(frozen=True)
class Beside:
    """Another version of one cell, measured in turn with this one."""

    against: Against
    expected: float  # standard deviation from one pair of processes to another, before any is seen
    name: str = "in the other version"

    @property
    def status(self) -> Status:
        """Whether it ran there."""
        return self.against.status

    def shift(self, _measured: Measurement) -> Shift:
        """The middle of the pairs' log ratios.

        What was learned does not make it less suspect, or nothing would be measured again that could correct it.
        """
        now = ratios(self.against.pairs)
        return Shift(now.centre, self._deviation(now), self.against.process)

    def fresh_shift(self, _measured: Measurement) -> Shift | None:
        """The mean over pairs of processes."""
        if not self.against.fresh:
            return None
        levels = [ratios(pairs) for pairs in self.against.fresh]
        centres = [r.centre for r in levels]
        expected = max(self.against.process, math.sqrt(fmean(self._deviation(r) ** 2 for r in levels)))
        return Shift(fmean(centres), _deviation_of_processes(centres, expected) / math.sqrt(len(centres)))

    def words(self, _measured: Measurement) -> list[str]:
        """Medians of both."""
        new = self.against.fresh or (self.against.pairs,)
        old = median(t for pairs in new for t in pairs.other_s)
        now = median(t for pairs in new for t in pairs.own_s)
        where = f"{len(new)} fresh pairs of processes" if self.against.fresh else "one pair of processes"
        count = sum(len(pairs.own_s) for pairs in new)
        return [f"median latency: {old:.4g} s -> {now:.4g} s, {count} pairs in turn in {where}"]

    def _deviation(self, now: Level) -> float:
        one = shrunk(now.scatter, now.count - 1, self.against.pooled or self.expected)
        return math.hypot(one * math.sqrt(MIDDLE / now.count), self.expected)


def beside(measured: Measurement) -> Beside | None:
    """The other version of a cell; None where none was measured."""
    expected = RULES[measured.cell.device].process
    return None if measured.against is None else Beside(measured.against, expected)


def share(change: float) -> str:
    """`5.0% longer`."""
    return f"{abs(change):.1%} {'longer' if change > 0 else 'less'}"


def _middle(times: Times) -> float:
    return summarise(times.latency_s).centre


def _deviation_of_processes(centres: Sequence[float], expected: float) -> float:
    """Of one process, from how the fresh ones differ and from what was expected."""
    return shrunk(math.sqrt(variance(centres)), len(centres) - 1, expected) if len(centres) > 1 else expected
