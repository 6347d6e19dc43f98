"""Accepted measurements. Times are of a machine: `baselines/<machine>/<grid>/<night>.json`, a line a cell.

Footprints, operator calls and perplexity are of none: `baselines/<grid>.json`, a line a model and method.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slimcore.bench.judge.gate import RULES, Nights, corrected
from slimcore.bench.statistics import pooled
from slimcore.errors import ResultsError
from slimcore.files import write_text

SCHEMA = "slimcore.baseline/2"
COSTS_SCHEMA = "slimcore.costs/1"
KEPT = 30  # nights; a pinned one is kept beyond them

Record = dict[str, Any]


@dataclass(frozen=True)
class Night:
    """One accepted run of a machine."""

    path: Path
    machine: str
    grid: str
    device: str
    started: str
    reason: str
    pinned: bool  # a release, to measure drift against
    software: Mapping[str, Any]
    moved: Collection[str]  # cells that start anew here: their earlier nights no longer count
    gone: Collection[str]  # cells that the grid no longer has
    cells: Mapping[str, Record]  # id -> status, latency_s, canary, conditions


@dataclass(frozen=True)
class Baseline:
    """What a machine was accepted to do on one grid, and what its models were accepted to cost."""

    root: Path
    machine: str
    grid: str
    device: str
    nights: Sequence[Night] = ()  # oldest first
    costs: Mapping[str, Record] = field(default_factory=dict)  # "model/method" -> footprint, perplexity
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
        """The nights that count for each cell, oldest first."""
        found: dict[str, list[Night]] = {}
        for night in self.nights:
            for cell in (*night.moved, *night.gone):
                found.pop(cell, None)
            for cell in night.cells:
                found.setdefault(cell, []).append(night)
        return found

    @cached_property
    def pooled(self) -> float:
        """Standard deviation of a cell's level from night to night, over all cells."""
        levels = (
            [corrected(n.cells[cell]).centre for n in nights if n.cells[cell]["status"] == "ok"]
            for cell, nights in self.histories.items()
        )
        return pooled(levels, RULES[self.device].night)

    @cached_property
    def references(self) -> Mapping[str, Nights]:
        """What each accepted cell is judged against."""
        return {cell: self._reference(cell, nights) for cell, nights in self.histories.items()}

    @property
    def release(self) -> Night | None:
        """The newest pinned night."""
        return next((night for night in reversed(self.nights) if night.pinned), None)

    @property
    def software(self) -> Mapping[str, Any]:
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
        status = nights[-1].cells[cell]["status"]
        counted = [n.cells[cell] for n in nights if n.cells[cell]["status"] == status] if status == "ok" else []
        return Nights(status, counted, self.pooled)


def read(root: Path, machine: str, grid: str, device: str) -> Baseline:
    """Read a baseline, which may have no nights yet. Raises ResultsError where a file is not one."""
    nights = [read_night(path) for path in sorted((root / machine / grid).glob("*.json"))]
    for night in nights:
        if (night.machine, night.grid) != (machine, grid):
            raise ResultsError(
                f"{night.path} was accepted on {night.machine} with grid {night.grid!r}, and lies where those of"
                f" {machine} and {grid!r} do: times of two machines are never compared; move or delete it"
            )
    costs: Record = {}
    path = root / f"{grid}.json"
    if path.exists():
        costs = _object(path, COSTS_SCHEMA).get("subjects", {})
        if not all(isinstance(c, dict) and isinstance(c.get("footprint"), dict) for c in costs.values()):
            raise ResultsError(f"{path} has subjects without a footprint: {_REMEDY}")
    return Baseline(root, machine, grid, device, nights, costs)


def read_night(path: Path) -> Night:
    """Read one night. Raises ResultsError."""
    data = _object(path, SCHEMA)
    cells = data.get("cells")
    if not isinstance(cells, dict) or not all(isinstance(c, dict) and "status" in c for c in cells.values()):
        raise ResultsError(f"{path} has no cells with a status: {_REMEDY}")
    for name, cell in cells.items():
        times = cell.get("latency_s", [])
        if cell["status"] == "ok" and not (_positive(times) and times):
            raise ResultsError(f"{path}: latency_s of {name} is {times!r}, expected positive seconds: {_REMEDY}")
        if (canary := cell.get("canary")) is not None and not _level(canary):
            raise ResultsError(f"{path}: canary of {name} is {canary!r}, expected a logarithm and its error: {_REMEDY}")
        if (host := cell.get("host")) is not None and not _finite(host):
            raise ResultsError(f"{path}: host of {name} is {host!r}, expected a logarithm: {_REMEDY}")
    try:
        return Night(
            path,
            str(data["machine"]),
            str(data["grid"]),
            str(data["device"]),
            str(data["started"]),
            str(data["reason"]),
            bool(data["pinned"]),
            dict(data["software"]),
            list(data["moved"]),
            list(data["gone"]),
            cells,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is malformed ({type(error).__name__}: {error}): {_REMEDY}") from None


def write(
    old: Baseline,
    start: Record,
    cells: Iterable[Record],
    subjects: Iterable[Record],
    *,
    reason: str,
    moved: Collection[str],
    gone: Collection[str],
    pinned: bool,
) -> Path:
    """Add a night to `old` from records of results, and take over costs; nights beyond KEPT go. The night's file."""
    path = old.folder / f"{start['started'][:19].replace(':', '-')}.json"
    head = {
        "schema": SCHEMA, "machine": old.machine, "grid": old.grid, "device": old.device,
        "started": start["started"], "reason": reason,
        "pinned": pinned, "software": start["software"], "moved": sorted(moved), "gone": sorted(gone),
    }  # fmt: skip
    lines = {c["id"]: _compact(c) for c in cells}
    write_text(path, _document(head, "cells", lines))
    costs = {name: cost for name, cost in old.costs.items() if not _left(name, gone, old.histories)}
    costs |= {f"{s['model']}/{s['method']}": cost_of(s) for s in subjects}
    write_text(old.costs_path, _document({"schema": COSTS_SCHEMA, "grid": old.grid}, "subjects", costs))
    counted = [night.path for night in old.nights if not night.pinned and night.path != path]
    for extra in counted[: max(0, len(counted) + 1 - KEPT)]:
        extra.unlink()
    return path


def cost_of(subject: Record) -> Record:
    """What of a subject is accepted: footprint, what counted its operators, perplexity with what it was measured on."""
    quality = subject["perplexity"]
    return {
        "footprint": subject["footprint"],
        "counted_by": subject.get("counted_by"),
        "perplexity": quality and _accepted_quality(quality),
    }


def _left(subject: str, gone: Collection[str], histories: Mapping[str, Any]) -> bool:
    """Whether the last cell of a subject is gone."""
    return any(g.startswith(f"{subject}/") for g in gone) and not any(
        i.startswith(f"{subject}/") and i not in gone for i in histories
    )


def _accepted_quality(quality: Record) -> Record:
    """A perplexity, and the hash of the token ids it is compared on: they hold the text, the tokenizer and BOS."""
    tokens = quality["tokens"]
    return {"value": round(quality["value"], 6), "text": tokens["text"], "predictions": quality["predictions"],
            "bos": tokens["bos"], "tokens_sha256": tokens["tokens_sha256"]}  # fmt: skip


def _compact(cell: Record) -> Record:
    """A cell as a night keeps it: five digits are more than any clock is good for."""
    kept: Record = {"status": cell["status"]}
    if cell["status"] == "ok":
        kept["latency_s"] = [_digits(s) for s in cell["latency_s"]]
        kept |= {name: cell[name] for name in ("canary", "host") if name in cell}
        if cell.get("conditions"):
            kept["conditions"] = cell["conditions"]
    return kept


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _document(head: Record, name: str, lines: Mapping[str, Any]) -> str:
    """JSON with a line an entry of `lines`, in order of their names: a pull request shows which changed."""
    body = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(lines.items()))
    fields = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    return "{\n" + ",\n".join([*fields, f" {json.dumps(name)}: {{\n{body}\n }}"]) + "\n}\n"


_REMEDY = "restore it from version control, or delete it and accept anew with --perf-update"


def _object(path: Path, schema: str) -> Record:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is not JSON ({error}): {_REMEDY}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise ResultsError(f"{path} has schema {found!r}, expected {schema!r}: {_REMEDY}")
    return dict(data)


def _positive(values: Any) -> bool:
    return isinstance(values, list) and all(_finite(v) and v > 0 for v in values)


def _level(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(map(_finite, values)) and values[1] >= 0


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
