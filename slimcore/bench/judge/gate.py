"""Measurement and reference -> verdict on a cell. No torch, no pytest.

A measured cell is compared with the accepted nights of its machine (`Nights`), or with another version that was
measured beside it, in turn (`Beside`). d is the logarithm of new over old, s its standard deviation, pooled over cells.
A cell with d / s > SCREEN is measured again in PROCESSES fresh processes; it is slower only where those alone have
z > CONFIRM and the change is over EFFECT. Where s is too large to see the wanted effect, it says inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist, fmean, median, variance
from typing import Any, Literal, Protocol

from slimcore.bench.statistics import MEDIAN, MIDDLE, Level, detectable, level, robust_deviation, shrunk, summarise

Verdict = Literal["same", "faster", "slower", "inconclusive", "no baseline", "status changed"]
Record = Mapping[str, Any]

SCREEN = 2.5  # z from which a cell is measured again
CONFIRM = 2.9  # z of the fresh processes alone
PROCESSES = 4
EFFECT = 0.02  # the smallest change that matters
FASTER = 4.0  # z from which good news is told: it is not measured again
FALSE_ALARM = 0.01  # chance over all cells, where they cannot be measured again
HOST = 0.5  # standard deviation of what a GPU's host moves a cell by, as a share of what it moves launches by


@dataclass(frozen=True)
class Rule:
    """What is expected of a kind of device before it is known."""

    night: float  # standard deviation of a cell's level from night to night, canary's shift taken off
    process: float  # and between two processes of one night
    detect: float  # the slowdown that a cell must be able to show, or it is inconclusive
    doubt: float  # standard deviation of what the canary's shift leaves of a cell's, as a share of it


# A GPU's clocks slow everything alike; a CPU's neighbours take cache and bandwidth from some work more than from other.
RULES = {
    "cpu": Rule(night=0.015, process=0.014, detect=0.10, doubt=0.5),
    "cuda": Rule(night=0.008, process=0.005, detect=0.05, doubt=0.05),
}


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what a person needs to act on it."""

    verdict: Verdict
    message: str
    passes: bool = True
    change: float | None = None  # share by which it is slower; below 0 faster
    suspect: bool = False  # to be measured again before anything is said


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
    def status(self) -> str:
        """Ok or oom."""

    def shift(self, measured: Record) -> Shift:
        """Of one measurement."""

    def fresh_shift(self, measured: Record) -> Shift:
        """Of its fresh processes alone."""

    def words(self, measured: Record) -> list[str]:
        """Lines on what was compared."""


@dataclass(frozen=True)
class Nights:
    """The accepted nights of one cell."""

    status: str
    nights: Sequence[Record]  # latency_s and canary of each; empty where the status is not ok
    pooled: float  # night to night, over all cells of the baseline

    @cached_property
    def centres(self) -> list[float]:
        """The level of each night, canary's taken off."""
        return [corrected(night).centre for night in self.nights]

    @cached_property
    def deviation(self) -> float:
        """Of one night's level."""
        return shrunk(robust_deviation(self.centres), len(self.nights) - 1, self.pooled)

    def shift(self, measured: Record) -> Shift:
        """Against the middle of the nights; a measurement noisier than nights are counts with its own noise."""
        now, s = corrected(measured), self.deviation
        doubt = self._doubt(measured, measured)
        s = math.sqrt(max(s, now.error) ** 2 + doubt**2 + self._uncertainty)
        return Shift(now.centre - median(self.centres), s)

    def fresh_shift(self, measured: Record) -> Shift:
        """The mean over processes, which share one canary."""
        centres = [corrected(f).centre for f in measured["fresh"]]
        one = _deviation_of_processes(centres, self.deviation)
        canary = math.hypot(canary_of(measured["fresh"][0]).error, self._doubt(measured, measured["fresh"][0]))
        s = math.sqrt(one**2 / len(centres) + canary**2 + self._uncertainty)
        return Shift(fmean(centres) - median(self.centres), s)

    def words(self, measured: Record) -> list[str]:
        """Medians of both, and the canary's."""
        new = measured.get("fresh") or [measured]
        count = len(self.nights)
        lines = [
            f"median latency: {self._latency:.4g} s over {count} accepted"
            f" {'night' if count == 1 else 'nights'} -> {median(_middle(m) for m in new):.4g} s"
            + (f" in {len(new)} fresh processes" if "fresh" in measured else "")
        ]
        if self.nights[0].get("canary") and new[0].get("canary"):
            drift = _share(math.expm1(median(canary_of(m).centre for m in new) - self._canary))
            lines.append(f"canary: the machine takes {drift} for a fixed work (taken off above)")
        if host := host_moved(new[:1], self.nights):
            lines.append(
                f"host: it takes {_share(math.expm1(host))} to launch operators (not taken off; doubted for it)"
            )
        return lines

    def _doubt(self, cell: Record, measured: Record) -> float:
        """What taking off the canary's shift, and leaving the host's in, may be wrong by."""
        return doubt(cell["device"], canary_of(measured).centre - self._canary, host_moved([measured], self.nights))

    @cached_property
    def _latency(self) -> float:
        return median(_middle(night) for night in self.nights)

    @cached_property
    def _canary(self) -> float:
        return median(canary_of(night).centre for night in self.nights)

    @cached_property
    def _uncertainty(self) -> float:
        """Variance of the middle of the nights."""
        n = len(self.nights)
        return self.deviation**2 * (MEDIAN if n > 2 else 1) / n


@dataclass(frozen=True)
class Beside:
    """Another version of one cell, measured in turn with the new one: `against_s` beside each `latency_s`."""

    status: str
    pooled: float  # of one pair's log ratio, over the cells so far
    process: float  # what is expected from one pair of processes to another
    learned: float = 0.0  # and what the fresh pairs of this run have shown

    def shift(self, measured: Record) -> Shift:
        """The middle of the pairs' log ratios.

        What was learned does not make it less suspect, or nothing would be measured again that could correct it.
        """
        now = ratios(measured)
        return Shift(now.centre, self._deviation(now), self.learned)

    def fresh_shift(self, measured: Record) -> Shift:
        """The mean over pairs of processes."""
        levels = [ratios(f) for f in measured["fresh"]]
        centres = [r.centre for r in levels]
        expected = max(self.learned, math.sqrt(fmean(self._deviation(r) ** 2 for r in levels)))
        one = _deviation_of_processes(centres, expected)
        return Shift(fmean(centres), one / math.sqrt(len(centres)))

    def words(self, measured: Record) -> list[str]:
        """Medians of both."""
        new = measured.get("fresh") or [measured]
        old = median(t for m in new for t in m["against_s"])
        now = median(t for m in new for t in m["latency_s"])
        where = f"{len(new)} fresh pairs of processes" if "fresh" in measured else "one pair of processes"
        pairs = sum(len(m["latency_s"]) for m in new)
        return [f"median latency: {old:.4g} s -> {now:.4g} s, {pairs} pairs in turn in {where}"]

    def _deviation(self, pairs: Level) -> float:
        one = shrunk(pairs.scatter, pairs.count - 1, self.pooled)
        return math.sqrt(MIDDLE * one**2 / pairs.count + self.process**2)


def corrected(measured: Record) -> Level:
    """The level of a measurement's latencies, the canary's taken off."""
    now, canary = level([math.log(t) for t in measured["latency_s"]]), canary_of(measured)
    return replace(now, centre=now.centre - canary.centre, error=math.hypot(now.error, canary.error))


def canary_of(measured: Record) -> Level:
    """What the canary read around a measurement; nothing where it could not be read."""
    readings = measured.get("canary") or (0.0, 0.0)
    return Level(readings[0], readings[1], 0.0, 1)


def host_moved(now: Iterable[Record], before: Iterable[Record]) -> float:
    """How far launching moved on a GPU's host, in logarithms; 0 where it was not read."""
    new, old = ([m["host"] for m in measured if m.get("host") is not None] for measured in (now, before))
    return median(new) - median(old) if new and old else 0.0


def doubt(device: str, canary: float, host: float) -> float:
    """Standard deviation of a cell's level where the canary and the host's launches moved so far, in logarithms.

    How much of a cell's time is the host's is not known: all of it in eager generation of small batches.
    """
    return math.hypot(RULES[device].doubt * canary, HOST * host)


def canary_levels(readings: Iterable[Sequence[float]]) -> dict[str, Any]:
    """The `canary` of a record: the middle of the readings and its error; on a GPU its `host` too. In logarithms.

    A reading is the seconds of a product, a copy and, on a GPU, of launches; an empty one could not be read.
    """
    read = [[math.log(seconds) for seconds in reading] for reading in readings if reading]
    if not read:
        return {"canary": None}
    device = level([fmean(reading[:2]) for reading in read])
    host = [launches for _, _, *more in read for launches in more]
    return {"canary": (round(device.centre, 6), round(device.error, 6))} | (
        {"host": round(level(host).centre, 6)} if host else {}
    )


def ratios(measured: Record) -> Level:
    """The level of the log ratios of a paired measurement."""
    return level(log_ratios(measured))


def log_ratios(measured: Record) -> list[float]:
    """New over old, pair by pair."""
    return [math.log(new / old) for new, old in zip(measured["latency_s"], measured["against_s"], strict=True)]


def judge(  # noqa: PLR0911 - a verdict a line
    cell: Record, reference: Reference | None, *, detect: float | None = None, alone: int = 0
) -> Judgement:
    """Judge a measured cell (a record of results) against its reference; None where there is none.

    `detect`: the slowdown that must be visible, in place of the device's. `alone`: where nothing can be measured again,
    the number of cells that are judged; a suspect cell then needs a z that all of them together rarely reach.
    """
    status, detail = cell["status"], f"\n  {cell['detail']}" if cell.get("detail") else ""
    if reference is None:
        words = f"{cell['id']}: {status}, no accepted measurement to compare with{detail}"
        return Judgement("no baseline", words, passes=status != "error")
    if status != reference.status:
        # oom -> ok is good news; everything else takes something away.
        return Judgement("status changed", f"{cell['id']}: {reference.status} -> {status}{detail}", status == "ok")
    if status != "ok":
        return Judgement("same", f"{cell['id']}: {status}, as accepted")
    shift = first = reference.shift(cell)
    least = math.log1p(EFFECT)
    suspect = shift.z > SCREEN and shift.d > least / 2
    slower = False
    if suspect and "fresh" in cell:
        shift = reference.fresh_shift(cell)
        slower = shift.z > CONFIRM and shift.d > least
    elif suspect and alone:
        slower = shift.z > NormalDist().inv_cdf(1 - FALSE_ALARM / alone) and shift.d > least
    if slower:
        return _judgement("slower", cell, reference, shift, passes=False)
    if suspect and not alone and "fresh" not in cell:
        return replace(_judgement("inconclusive", cell, reference, shift), suspect=True)
    if shift.z < -FASTER and shift.d < -least:
        return _judgement("faster", cell, reference, shift)
    if first.smallest > (detect or RULES[cell["device"]].detect):
        return _judgement("inconclusive", cell, reference, shift, f"; could have seen {first.smallest:.0%}, not less")
    return _judgement("same", cell, reference, shift)


def _judgement(
    verdict: Verdict, cell: Record, reference: Reference, shift: Shift, more: str = "", *, passes: bool = True
) -> Judgement:
    low, high = shift.interval()
    change = math.expm1(shift.d)
    words = [
        f"{cell['id']}: {verdict}, {_share(change)} ({low:+.1%} to {high:+.1%}, z {shift.z:.1f}){more}",
        *reference.words(cell),
    ]
    return Judgement(verdict, "\n  ".join(words), passes, change)


def _share(change: float) -> str:
    return f"{abs(change):.1%} {'longer' if change > 0 else 'less'}"


def _middle(measured: Record) -> float:
    return summarise(measured["latency_s"]).centre


def _deviation_of_processes(centres: Sequence[float], expected: float) -> float:
    """Of one process, from how the fresh ones differ and from what was expected."""
    return shrunk(math.sqrt(variance(centres)), len(centres) - 1, expected) if len(centres) > 1 else expected
