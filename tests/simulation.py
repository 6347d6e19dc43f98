"""Nights made up, and what each rule says of them: `python -m tests.simulation` prints the table.

A night is 500 cells of 10 samples. The logarithm of a sample is the sum of: what the machine is like that night (the
canary sees it), what the cell is like in that process, an AR(1) noise within the process, and now and then a spike.
Machines wander from night to night as an AR(1) too. 30 nights are accepted before. The gate is slimcore's own.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.gate import judge
from slimcore.bench.judge.levels import corrected
from slimcore.bench.judge.references import Nights
from slimcore.bench.judge.rules import PROCESSES, RULES
from slimcore.bench.records.records import Measurement, Times
from slimcore.bench.statistics import pooled

CELL = Cell("llama-7b", "dense", 12, 128, 1, "eager", "fp16", "cuda")
CELLS, SAMPLES, NIGHTS = 500, 10, 30
AUTOCORRELATION = 0.5
SPIKES, SPIKE = 0.02, 0.3  # how many samples take longer, and by how much at most
CANARY = 0.002  # noise of the canary's reading
NOISE = {"low": 0.5, "medium": 1.0, "high": 4.0}
OTHERS = {
    "median over baseline by 5 %": lambda new, old: np.median(new, 1) > 1.05 * np.median(old, 1),
    "mean over baseline by 5 %": lambda new, old: new.mean(1) > 1.05 * old.mean(1),
    "Mann-Whitney p < 0.05": lambda new, old: _mann_whitney(new, old) < 0.05,
    "p < 0.002 and x 1.10": lambda new, old: (
        (_mann_whitney(new, old) < 0.002) & (np.median(new, 1) > 1.1 * np.median(old, 1))
    ),
}


@dataclass
class Machine:
    """A machine of some noise, and its accepted nights."""

    noise: float
    seed: int

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)
        self._weather = self.effect = 0.0
        self.accepted = [self.night() for _ in range(NIGHTS)]

    def night(self, effect=0.0, cells=CELLS, *, same_night=False):
        """Samples (cells, samples) and the canary's readings of a night on which all cells are slower by `effect`."""
        random, scale = self.random, 0.007 * self.noise
        if not same_night:
            self._weather = AUTOCORRELATION * self._weather + random.normal(0, scale * math.sqrt(0.75))
        noise = random.normal(0, 0.01 * self.noise, (cells, SAMPLES))
        for k in range(1, SAMPLES):
            noise[:, k] = AUTOCORRELATION * noise[:, k - 1] + math.sqrt(1 - AUTOCORRELATION**2) * noise[:, k]
        noise += random.normal(0, scale, (cells, 1)) + self._weather + math.log1p(effect)
        noise += (random.random((cells, SAMPLES)) < SPIKES) * random.uniform(0, SPIKE, (cells, SAMPLES))
        return np.exp(noise), np.exp(self._weather + random.normal(0, CANARY, cells))

    @cached_property
    def references(self):
        """The gate's references, a cell."""
        records = [[record(t[i], c[i]) for t, c in self.accepted] for i in range(CELLS)]
        scatter = pooled([[corrected(night).centre for night in nights] for nights in records], RULES["cuda"].night)
        return [Nights("ok", nights, scatter) for nights in records]

    @cached_property
    def history(self):
        """Log medians (cells, nights), for the rule that looks at history alone."""
        return np.log(np.stack([np.median(t, 1) for t, _ in self.accepted], 1))

    def verdicts(self, night):
        """The gate's verdict on each cell, suspects measured again in fresh processes of the same night."""
        times, canary = night
        verdicts = []
        for i, reference in enumerate(self.references):
            cell = Measurement(CELL, "ok", times=record(times[i], canary[i]))
            judgement = judge(cell, reference)
            if judgement.suspect:
                effect = math.expm1(self.effect)
                again = [self.night(effect, 1, same_night=True) for _ in range(PROCESSES)]
                judgement = judge(replace(cell, fresh=tuple(record(t[0], c[0]) for t, c in again)), reference)
            verdicts.append(judgement.verdict)
        return verdicts


def record(times, canary):
    """A measurement as results hold it."""
    return Times(tuple(times.tolist()), (math.log(canary), 0.0))


def run(noise, effect, nights, *, machines=4, seed=0):
    """A rule's share of nights with any cell called slower, and of cells called so; shares of slimcore's verdicts."""
    alarms, caught, verdicts = Counter(), Counter(), Counter()
    for m in range(machines):
        machine = Machine(NOISE[noise], seed * 1000 + m)
        machine.effect = math.log1p(effect)
        for _ in range(nights // machines):
            night = machine.night(effect)
            said = machine.verdicts(night)
            verdicts.update(said)
            calls = {"slimcore": np.array([v == "slower" for v in said])}
            old = machine.accepted[-1][0]
            calls |= {name: rule(night[0], old) for name, rule in OTHERS.items()}
            history = machine.history
            z = (np.log(np.median(night[0], 1)) - history.mean(1)) / history.std(1, ddof=1)
            calls["history, z > 5, 30 nights"] = z > 5
            for name, slower in calls.items():
                alarms[name] += slower.any()
                caught[name] += slower.mean()
    count = nights // machines * machines
    return {n: (alarms[n] / count, caught[n] / count) for n in calls}, {
        v: n / verdicts.total() for v, n in verdicts.items()
    }


def _mann_whitney(new, old):
    return stats.mannwhitneyu(new, old, alternative="greater", axis=1).pvalue


def main():
    """Print the table."""
    print("| noise | rule | nights with a false alarm | +5 % caught | +10 % caught |\n|---|---|---:|---:|---:|")
    for noise in NOISE:
        quiet, none = run(noise, 0.0, 200)
        five, _ = run(noise, 0.05, 8, seed=1)
        ten, _ = run(noise, 0.10, 8, seed=2)
        for rule in quiet:
            print(f"| {noise} | {rule} | {quiet[rule][0]:.1%} | {five[rule][1]:.1%} | {ten[rule][1]:.1%} |", flush=True)
        print(f"\n{noise}, nothing slower: " + ", ".join(f"{n:.2%} {v}" for v, n in none.items()) + "\n")


if __name__ == "__main__":
    main()
