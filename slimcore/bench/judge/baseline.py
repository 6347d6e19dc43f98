"""What was accepted. Times are of a machine: `baselines/<machine>/<grid>/<night>.json`, a line a cell.

What needs no clock is of none: `baselines/<grid>.json`, a line a subject.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from slimcore.bench.grid.cells import Cell, Key
from slimcore.bench.judge.levels import corrected
from slimcore.bench.judge.nights import Accepted, Night, read_costs, read_night, write_costs, write_night
from slimcore.bench.judge.references import Nights
from slimcore.bench.judge.rules import RULES
from slimcore.bench.records.records import Fact, Measurement, Subject
from slimcore.bench.records.results import Run
from slimcore.bench.statistics import pooled
from slimcore.errors import ResultsError
from slimcore.validation import one_line

KEPT = 30  # nights; a pinned one is kept beyond them


@dataclass(frozen=True)
class Baseline:
    """What a machine was accepted to do on one grid, and what its models were accepted to cost."""

    root: Path
    machine: str
    grid: str
    device: str
    nights: Sequence[Night] = ()  # oldest first
    costs: Mapping[Key, Subject] = field(default_factory=dict)
    title: str = ""  # where it is not the accepted nights
    itself: bool = False  # the run that is judged is one of the nights, and left out

    @property
    def name(self) -> str:
        """What is compared with, in words."""
        nights = len(self.nights)
        return self.title or f"the baseline of {nights} {'night' if nights == 1 else 'nights'}"

    @property
    def folder(self) -> Path:
        """Where its nights lie."""
        return self.root / self.machine / self.grid

    @property
    def costs_path(self) -> Path:
        """Where the costs of its grid lie."""
        return self.root / f"{self.grid}.json"

    @cached_property
    def histories(self) -> Mapping[str, list[Night]]:
        """The nights that count for each cell, oldest first: those since it last moved, with the newest weights."""
        found: dict[str, list[Night]] = {}
        for night in self.nights:
            for cell in (*night.moved, *night.gone):
                found.pop(cell, None)
            for cell in night.cells:
                nights = found.setdefault(cell, [])
                if nights and differ(nights[-1].weights_of(cell), night.weights_of(cell)):
                    nights.clear()
                nights.append(night)
        return found

    @cached_property
    def pooled(self) -> float:
        """Standard deviation of a cell's level from night to night, over all cells."""
        levels = (
            [corrected(n.cells[cell].times).centre for n in nights if n.cells[cell].status == "ok"]
            for cell, nights in self.histories.items()
        )
        return pooled(levels, RULES[self.device].night)

    @cached_property
    def references(self) -> Mapping[str, Nights]:
        """The nights of each cell, to be compared with where the weights are the same: see Judge.reference."""
        return {cell: self._reference(cell, nights) for cell, nights in self.histories.items()}

    @property
    def release(self) -> Night | None:
        """The newest pinned night."""
        return next((night for night in reversed(self.nights) if night.pinned), None)

    @property
    def software(self) -> Mapping[str, Fact]:
        """Versions of the newest night."""
        return self.nights[-1].software if self.nights else {}

    def without(self, starts: Iterable[str]) -> Baseline:
        """What a run that began at `starts` is judged against: not itself, where it is accepted already."""
        own = set(starts)
        others = [night for night in self.nights if night.started not in own]
        return replace(self, nights=others, itself=len(others) < len(self.nights))

    def others(self) -> list[str]:
        """Machines that have a baseline of this grid."""
        machines = {p.parent.parent.name for p in self.root.glob(f"*/{self.grid}/*.json")}
        return sorted(machines - {self.machine})

    def _reference(self, cell: str, nights: Sequence[Night]) -> Nights:
        status = nights[-1].cells[cell].status
        alike = [n.cells[cell].times for n in nights if n.cells[cell].status == status == "ok"]
        return Nights(status, alike, self.pooled)


def differ(one: str | None, other: str | None) -> bool:
    """Whether two hashes of weights are known, and of different weights."""
    return bool(one and other) and one != other


def read(root: Path, machine: str, grid: str, device: str) -> Baseline:
    """Read a baseline, which may have no nights yet. Raises ResultsError where a file is not one."""
    nights = [read_night(path) for path in sorted((root / machine / grid).glob("*.json"))]
    for night in nights:
        if (night.machine, night.grid) != (machine, grid):
            raise ResultsError(
                f"{night.path} was accepted on {night.machine} with grid {night.grid!r}, and lies where those of"
                f" {machine} and {grid!r} do: times of two machines are never compared; move or delete it"
            )
    return Baseline(root, machine, grid, device, nights, read_costs(root / f"{grid}.json"))


def night_of(run: Run, cells: Iterable[Measurement]) -> Night:
    """Measurements of a run as a night; a run that was gone on with is still one."""
    start = run.start
    return Night(
        start.machine, start.grid, start.device, run.began[0], reason="", pinned=False, software=start.software,
        weights=run.weights, moved=(), gone=(), cells={cell.id: Accepted.of(cell) for cell in cells}, path=run.folder,
    )  # fmt: skip


def write(
    old: Baseline,
    run: Run,
    cells: Iterable[Measurement],
    *,
    reason: str,
    moved: Collection[str],
    gone: Collection[str],
    pinned: bool,
) -> Path:
    """Add `cells` of `run` to `old` as a night, and take over costs; nights beyond KEPT go. The night's file."""
    path = old.folder / f"{run.began[0][:19].replace(':', '-')}.json"
    write_night(
        replace(
            night_of(run, cells),
            path=path,
            reason=one_line(reason),
            pinned=pinned,
            moved=tuple(sorted(moved)),
            gone=tuple(sorted(gone)),
        )
    )
    left = {Cell.of_id(i, old.device).subject for i in gone}
    left -= {Cell.of_id(i, old.device).subject for i in old.histories if i not in gone}
    known = {key: subject for key, subject in old.costs.items() if key not in left}
    if known or run.subjects:
        write_costs(old.costs_path, old.grid, known | run.subjects)
    counted = [night.path for night in old.nights if not night.pinned and night.path != path]
    for extra in counted[: max(0, len(counted) + 1 - KEPT)]:
        extra.unlink()
    return path
