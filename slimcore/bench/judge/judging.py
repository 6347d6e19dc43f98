"""Records of a run -> verdicts: what each is judged against, and what to tell a person beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slimcore.bench.judge.baseline import Baseline, read
from slimcore.bench.judge.gate import RULES, Beside, Judgement, Reference, judge
from slimcore.bench.records.results import Record, Run

NEVER_COMPARED = ("slimcore", "dirty")  # of software: said by the commit


@dataclass
class Judge:
    """Judges the cells of one run."""

    baseline: Baseline
    start: Record  # of the run: its software, and how strict it was asked to be
    alone: int = 0  # cells, where none can be measured again
    again: Mapping[str, str] = field(default_factory=dict)  # id -> the command that measures it again

    def __call__(self, cell: Record) -> Judgement:
        """The verdict on one record."""
        verdict = judge(cell, self.reference(cell), detect=self.start.get("detect"), alone=self.alone)
        if self.start.get("aa") and verdict.verdict in ("slower", "inconclusive"):
            return replace(verdict, passes=True)  # a false alarm, to be counted
        if self.start.get("strict") and verdict.verdict in ("inconclusive", "no baseline") and not verdict.suspect:
            verdict = replace(verdict, passes=False, message=f"{verdict.message}\n  and --perf-strict fails that")
        if verdict.passes:
            return verdict
        lines = []
        if verdict.verdict in ("slower", "status changed") and (changed := self.changes(cell)):
            lines.append("also changed: " + "; ".join(changed))
        if cell["id"] in self.again:
            lines.append(f"measure it again: {self.again[cell['id']]}")
        return replace(verdict, message="\n  ".join([verdict.message, *lines]))

    def all(self, cells: Iterable[Record]) -> dict[str, Judgement]:
        """By id."""
        return {cell["id"]: self(cell) for cell in cells}

    def reference(self, cell: Record) -> Reference | None:
        """What `cell` is judged against: the version measured beside it, or the accepted nights."""
        if "against_status" in cell:
            rule = RULES[cell["device"]]
            return Beside(
                cell["against_status"], cell.get("pooled", rule.process), rule.process, cell.get("process", 0.0)
            )
        return self.baseline.references.get(cell["id"])

    def changes(self, cell: Record) -> list[str]:
        """What differs from the newest accepted night, in software and in the device's condition."""
        if "against_status" in cell or not self.baseline.nights:
            return []
        old, new = self.baseline.software, self.start["software"]
        lines = [f"{k} {old[k]} -> {new[k]}" for k in new if k not in NEVER_COMPARED and k in old and old[k] != new[k]]
        nights = self.baseline.histories.get(cell["id"])
        before = (nights[-1].cells[cell["id"]].get("conditions") if nights else None) or {}
        now = cell.get("conditions") or {}
        lines += [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
        return lines


def judge_of(run: Run, baselines: Path, *, alone: int = 0) -> Judge:
    """The judge of a run that is read, against the other nights of its machine below `baselines`."""
    start = run.start
    known = read(baselines, start["machine"], start["grid"], start["device"])
    return Judge(known.without(run.began), start, alone)
