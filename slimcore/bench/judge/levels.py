"""Measured times -> levels: middles of logarithms with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from slimcore.bench.judge.rules import HOST, RULES
from slimcore.bench.records.records import Pairs, Times
from slimcore.bench.statistics import Level, level


def corrected(times: Times) -> Level:
    """The level of the latencies, the canary's taken off."""
    now, canary = level([math.log(t) for t in times.latency_s]), canary_of(times)
    return replace(now, centre=now.centre - canary.centre, error=math.hypot(now.error, canary.error))


def canary_of(times: Times) -> Level:
    """What the canary read around a measurement; nothing where it could not be read."""
    centre, error = times.canary or (0.0, 0.0)
    return Level(centre, error, 0.0, 1)


def host_moved(now: Iterable[Times], before: Iterable[Times]) -> float:
    """How far launching moved on a GPU's host, in logarithms; 0 where it was not read."""
    new, old = ([t.host for t in times if t.host is not None] for times in (now, before))
    return median(new) - median(old) if new and old else 0.0


def doubt(device: str, canary: float, host: float) -> float:
    """Standard deviation of a cell's level where the canary and the host's launches moved so far, in logarithms.

    How much of a cell's time is the host's is not known: all of it in eager generation of small batches.
    """
    return math.hypot(RULES[device].doubt * canary, HOST * host)


def log_ratios(pairs: Pairs) -> list[float]:
    """This one's time over the other's, pair by pair."""
    return [math.log(own / other) for own, other in zip(pairs.own_s, pairs.other_s, strict=True)]


def ratios(pairs: Pairs) -> Level:
    """The level of the log ratios."""
    return level(log_ratios(pairs))
