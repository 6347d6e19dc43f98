"""Measurement and reference -> verdict on a cell. No torch, no pytest.

A measured cell is compared with the accepted nights of its machine (`Nights`), or with another version that was
measured beside it, in turn (`Beside`). d is the logarithm of new over old, s its standard deviation, pooled over cells.
A cell with d / s > SCREEN is measured again in PROCESSES fresh processes; it is slower only where those alone have
z > CONFIRM and the change is over EFFECT. Where s is too large to see the wanted effect, it says inconclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from slimcore.bench.judge.references import Reference, Shift, share
from slimcore.bench.judge.rules import CONFIRM, EFFECT, FALSE_ALARM, FASTER, RULES, SCREEN
from slimcore.bench.records.records import Measurement

Verdict = Literal["same", "faster", "slower", "inconclusive", "no baseline", "status changed"]
NOTHING = "no accepted measurement to compare with"


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what a person needs to act on it."""

    verdict: Verdict
    message: str
    passes: bool = True
    change: float | None = None  # share by which it is slower; below 0 faster
    suspect: bool = False  # to be measured again before anything is said


def judge(
    measured: Measurement,
    reference: Reference | None,
    *,
    detect: float | None = None,
    alone: int = 0,
    nothing: str = NOTHING,
) -> Judgement:
    """Judge a measured cell against its reference; None where there is none, for the reason `nothing`.

    `detect`: the slowdown that must be visible, in place of the device's. `alone`: where nothing can be measured again,
    the number of cells that are judged; a suspect cell then needs a z that all of them together rarely reach.
    """
    status, detail = measured.status, f"\n  {measured.detail}" if measured.detail else ""
    if reference is None:
        return Judgement("no baseline", f"{measured.id}: {status}, {nothing}{detail}", passes=status != "error")
    if status != reference.status:
        # oom -> ok is good news; everything else takes something away.
        return Judgement("status changed", f"{measured.id}: {reference.status} -> {status}{detail}", status == "ok")
    if status != "ok":
        # Where both versions failed, nothing was compared.
        return Judgement("same", f"{measured.id}: {status}, as {reference.name}{detail}", passes=status != "error")
    return _judge_times(measured, reference, detect or RULES[measured.cell.device].detect, alone)


def _judge_times(measured: Measurement, reference: Reference, detect: float, alone: int) -> Judgement:
    first, fresh, least = reference.shift(measured), None, math.log1p(EFFECT)
    suspect = first.z > SCREEN and first.d > least / 2
    if suspect:
        fresh = reference.fresh_shift(measured)
        if fresh is None and not alone:
            return replace(_judgement("inconclusive", measured, reference, first), suspect=True)
        z = CONFIRM if fresh else NormalDist().inv_cdf(1 - FALSE_ALARM / alone)
        if (fresh or first).z > z and (fresh or first).d > least:
            return _judgement("slower", measured, reference, fresh or first, passes=False)
    shift = fresh or first
    if shift.z < -FASTER and shift.d < -least:
        return _judgement("faster", measured, reference, shift)
    if first.smallest > detect:
        more = f"; could have seen {first.smallest:.0%}, not less"
        return _judgement("inconclusive", measured, reference, shift, more)
    return _judgement("same", measured, reference, shift)


def _judgement(
    verdict: Verdict, measured: Measurement, reference: Reference, shift: Shift, more: str = "", *, passes: bool = True
) -> Judgement:
    low, high = shift.interval()
    change = math.expm1(shift.d)
    words = [
        f"{measured.id}: {verdict}, {share(change)} ({low:+.1%} to {high:+.1%}, z {shift.z:.1f}){more}",
        *reference.words(measured),
    ]
    return Judgement(verdict, "\n  ".join(words), passes, change)
