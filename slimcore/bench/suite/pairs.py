"""Measuring two versions in turn, each in a process of its own that lives as long as the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.gate import PROCESSES, RULES, log_ratios, ratios
from slimcore.bench.statistics import pooled
from slimcore.bench.suite.remote import Refused, Remote, start

if TYPE_CHECKING:
    from slimcore.bench.measure.timing import Protocol
    from slimcore.bench.records.results import Record, Run

KINDS = ("against", "subject")  # of the subjects' records: the other version's, ours


class Pairs:
    """This version and another one, to be judged against each other: noise that both share falls out."""

    def __init__(self, run: Run, roots: tuple[Path, Path], protocol: Protocol, devices: str | None = None) -> None:
        """`roots`: folders of the other version and of this one; the same folder twice for an A/A run."""
        self._run, self._roots, self._protocol, self._devices = run, roots, protocol, devices
        self._processes: tuple[Remote, ...] = ()
        self._round = 0
        self.building: Callable[[], AbstractContextManager[None]] = nullcontext  # around the long work before a cell

    def measure(self, cell: Cell, write: Callable[[Record], None]) -> Record:
        """The times of both; `write` takes the records of subjects that are new."""
        if cell.round != self._round:  # a round is a run: it has processes of its own
            self.close()
            self._round = cell.round
        if not self._processes:
            self._processes = start(self._roots, self._devices)
        with self.building():
            # Ours first: where the other is ourselves too, it takes the plan that was found.
            sides = reversed(list(zip(self._processes, KINDS, strict=True)))
            new, old = [self._open(process, cell, kind, write) for process, kind in sides]
        record: Record = {"ttft_s": [], "warmup_s": [], "canary_s": [], "peak_bytes": None}
        if not old and not new:
            record |= self._in_turn(self._processes, cell, self._protocol)
            old, new = record.pop("refusals")
        return record | {"status": "oom" if new else "ok", "detail": new, "against_status": "oom" if old else "ok"}

    def again(self, cell: Cell, record: Record) -> Record:
        """Times of `cell` in fresh pairs of processes, one pair after the other, and how far such pairs differ."""
        self.close()  # they hold memory that a fresh pair needs
        count = self._protocol.again(record["latency_s"])
        protocol = replace(self._protocol, repeats=(count, count), seconds=math.inf)
        fresh = []
        for _ in range(PROCESSES):
            processes = start(self._roots, self._devices)
            try:
                for process, kind in zip(processes, KINDS, strict=True):
                    process.open(cell.as_dict(), self._known(cell, kind))
                times = self._in_turn(processes, cell, protocol)
            finally:
                for process in processes:
                    process.close()
            if any(times["refusals"]):
                raise MemoryError(f"{cell.id}: ran out of memory when measured again")
            fresh.append({"latency_s": times["latency_s"], "against_s": times["against_s"]})
        return {"fresh": fresh, "process": self._process(cell, fresh)}

    def drop(self) -> None:
        """Let go of what an error may have left."""
        self.close()

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.close()
        self._processes = ()

    def _open(self, process: Remote, cell: Cell, kind: str, write: Callable[[Record], None]) -> str:
        """Build the subject there; the allocator's words where it does not fit."""
        try:
            subject = process.open(cell.as_dict(), self._known(cell, kind))
        except Refused as refused:
            return f"the model or its first run does not fit: {refused}"
        if cell.subject not in (self._run.subjects if kind == "subject" else self._run.against):
            write({"kind": kind} | subject)
        return ""

    def _known(self, cell: Cell, kind: str) -> Record | None:
        """The subject's record, whose plan need not be found again: the other version's own, or ours for ourselves."""
        ours = self._run.subjects.get(cell.subject)
        if kind == "subject":
            return ours
        return self._run.against.get(cell.subject) or (ours if self._roots[0] == self._roots[1] else None)

    def _in_turn(self, processes: tuple[Remote, ...], cell: Cell, protocol: Protocol) -> Record:
        """One generate each, the order changing from pair to pair, until the ratio is tight or the time is used."""
        times: tuple[list[float], list[float]] = ([], [])
        refusals = ["", ""]
        while protocol.wants_more(_ratios(*times), sum(map(sum, times)) / 2):
            pair = {}
            for side in (0, 1) if len(times[1]) % 2 == 0 else (1, 0):
                try:
                    pair[side] = processes[side].time()
                except Refused as refused:
                    refusals[side] = str(refused)
            if any(refusals):
                return {"latency_s": [], "against_s": [], "refusals": refusals}
            for side, taken in pair.items():
                times[side].append(taken)
        against, latency = ([round(s, 9) for s in side] for side in times)
        earlier = [c for c in self._run.cells.values() if c["status"] == "ok" and c.get("against_s")]
        record: Record = {"latency_s": latency, "against_s": against, "refusals": refusals}
        return record | {
            "pooled": pooled(map(log_ratios, (*earlier, record)), RULES[cell.device].process),
            "process": self._process(cell),
        }

    def _process(self, cell: Cell, *fresh: Sequence[Record]) -> float:
        """Standard deviation from one pair of processes to another, over the cells that were measured in several."""
        known = [c["fresh"] for c in self._run.cells.values() if c.get("fresh") and c["id"] != cell.id]
        return pooled(([ratios(f).centre for f in pairs] for pairs in (*known, *fresh)), RULES[cell.device].process)


def _ratios(old: list[float], new: list[float]) -> list[float]:
    return [b / a for a, b in zip(old, new, strict=True)]
