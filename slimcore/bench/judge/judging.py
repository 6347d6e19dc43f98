"""Measurements of a run -> verdicts: what each is judged against, and what to tell a person beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slimcore.bench.judge.baseline import Baseline, differ, read
from slimcore.bench.judge.gate import NOTHING, Judgement, judge
from slimcore.bench.judge.references import Nights, Reference, beside
from slimcore.bench.records.records import Measurement, Start, dense_of
from slimcore.bench.records.results import Run

NEVER_COMPARED = ("slimcore", "dirty")  # of software: said by the commit


@dataclass
class Judge:
    """Judges the cells of one run."""

    baseline: Baseline
    start: Start  # of the run: its software, and how strict it was asked to be
    weights: Mapping[str, str]  # Run.weights, which grows while the run does
    alone: int = 0  # cells, where none can be measured again
    again: Mapping[str, str] = field(default_factory=dict)  # id -> the command that measures it again

    def __call__(self, measured: Measurement) -> Judgement:
        """The verdict on one cell."""
        reference, nothing = self.reference(measured), NOTHING
        if reference is None and measured.id in self.baseline.histories:
            nothing = "not compared: the accepted nights are of other weights"
        verdict = judge(measured, reference, detect=self.start.detect, alone=self.alone, nothing=nothing)
        if self.start.aa and verdict.verdict in ("slower", "inconclusive"):
            return replace(verdict, passes=True)  # a false alarm, to be counted
        if self.start.strict and verdict.verdict in ("inconclusive", "no baseline") and not verdict.suspect:
            verdict = replace(verdict, passes=False, message=f"{verdict.message}\n  and --perf-strict fails that")
        if verdict.passes:
            return verdict
        lines = []
        if verdict.verdict in ("slower", "status changed") and (changed := self.changes(measured)):
            lines.append("also changed: " + "; ".join(changed))
        if measured.id in self.again:
            lines.append(f"measure it again: {self.again[measured.id]}")
        return replace(verdict, message="\n  ".join([verdict.message, *lines]))

    def all(self, cells: Iterable[Measurement]) -> dict[str, Judgement]:
        """By id."""
        return {measured.id: self(measured) for measured in cells}

    def reference(self, measured: Measurement) -> Reference | None:
        """What a cell is judged against: the version measured beside it, or the accepted nights."""
        return beside(measured) or self.nights(measured)

    def nights(self, measured: Measurement) -> Nights | None:
        """The accepted nights of a cell; None where there are none, or they are of other weights."""
        nights = self.baseline.histories.get(measured.id)
        here = self.weights.get(dense_of(measured.cell.subject))
        if self.start.against or not nights or differ(nights[-1].weights_of(measured.id), here):
            return None
        return self.baseline.references[measured.id]

    def changes(self, measured: Measurement) -> list[str]:
        """What differs from the newest accepted night, in software and in the device's condition."""
        if measured.against or not self.baseline.nights:
            return []
        old, new = self.baseline.software, self.start.software
        lines = [f"{k} {old[k]} -> {new[k]}" for k in new if k not in NEVER_COMPARED and k in old and old[k] != new[k]]
        nights = self.baseline.histories.get(measured.id)
        before = (nights[-1].cells[measured.id].conditions if nights else None) or {}
        now = measured.conditions or {}
        return lines + [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]


def judge_of(run: Run, baselines: Path, *, alone: int = 0) -> Judge:
    """The judge of a run that is read, against the other nights of its machine below `baselines`."""
    start = run.start
    known = read(baselines, start.machine, start.grid, start.device)
    return Judge(known.without(run.began), start, run.weights, alone)
