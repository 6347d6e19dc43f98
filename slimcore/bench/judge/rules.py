"""What the gate expects of a kind of device, and its thresholds. z: a change in its standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

SCREEN = 2.5  # z from which a cell is measured again
CONFIRM = 2.9  # z of the fresh processes alone
PROCESSES = 4  # fresh ones, for a suspect
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
    canary: float  # standard deviation of the canary's level from night to night


# A GPU's clocks slow everything alike; a CPU's neighbours take cache and bandwidth from some work more than from other.
RULES = {
    "cpu": Rule(night=0.015, process=0.014, detect=0.10, doubt=0.5, canary=0.15),
    "cuda": Rule(night=0.008, process=0.005, detect=0.05, doubt=0.05, canary=0.01),
}
