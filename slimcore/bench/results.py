"""One JSON line a thing measured, written the moment it ends; reading back what a killed run left.

Kinds of line: `run` (grid, machine, software; one a start), `subject` (footprint, perplexity, plan), `cell`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimcore.bench.statistics import summarise
from slimcore.errors import ResultsError

SCHEMA = "slimcore.results/2"
FILE = "results.jsonl"

Record = dict[str, Any]


@dataclass
class Run:
    """A run as its lines tell it."""

    folder: Path
    starts: list[Record] = field(default_factory=list)
    subjects: dict[tuple[str, str], Record] = field(default_factory=dict)
    cells: dict[str, Record] = field(default_factory=dict)  # by id; a later line replaces an earlier one

    @property
    def start(self) -> Record:
        """The newest start: grid, machine, software, planned cells."""
        return self.starts[-1]

    @property
    def planned(self) -> list[str]:
        """Ids of all cells this run has set out to measure."""
        return list(self.start["cells"]) if self.starts else []

    @property
    def done(self) -> dict[str, Record]:
        """Cells that need not be measured again: all but errors."""
        return {i: c for i, c in self.cells.items() if c["status"] != "error"}

    def add(self, record: Record) -> None:
        """Take one line in."""
        match record.get("kind"):
            case "run":
                self.starts.append(record)
            case "subject":
                self.subjects[record["model"], record["method"]] = record
            case "cell":
                self.cells[record["id"]] = record
            case other:
                raise ResultsError(f"{self.folder / FILE}: a line of unknown kind {other!r}")


def throughput(cell: Record) -> float:
    """Generated tokens a second of a cell, all rows together, at the median latency."""
    return float(cell["batch"] * cell["output_tokens"] / summarise(cell["latency_s"]).centre)


def append(run: Run, record: Mapping[str, Any]) -> None:
    """Add one line to `run`, whole and on the disk before this returns."""
    with (run.folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())
    run.add(dict(record))


def create(reports: Path, grid: str) -> Run:
    """Make a new run folder `<grid>-<date>-<time>` below `reports`. Raises ResultsError."""
    stem = f"{grid}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        reports.mkdir(parents=True, exist_ok=True)
        for name in [stem, *(f"{stem}-{n}" for n in range(2, 100))]:
            if not (reports / name).exists():
                (reports / name).mkdir()
                (reports / name / FILE).touch()
                return Run(reports / name)
    except OSError as error:
        raise ResultsError(f"cannot write reports to {reports}: {error}") from None
    raise ResultsError(f"{reports} has a hundred runs of this second: {stem}")


def resume(reports: Path, name: str, grid: str) -> Run:
    """Open a run to go on with: `name` below `reports`, or the newest one of `grid` where `name` is `latest`.

    A torn last line is cut off: its cell is measured again. Raises ResultsError.
    """
    if name == "latest":
        runs = sorted((p.stat().st_mtime, p.parent) for p in reports.glob(f"{grid}-*/{FILE}"))
        if not runs:
            raise ResultsError(f"no run of grid {grid!r} to resume in {reports}: start one without --perf-resume")
        folder = runs[-1][1]
    else:
        folder = reports / name
    run = read(folder)
    data = (folder / FILE).read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with (folder / FILE).open("r+b") as file:
            file.truncate(len(whole))
    return run


def read(folder: Path) -> Run:
    """Read a run; a torn last line is passed over, any other that is not JSON is an error. Raises ResultsError."""
    path = folder / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"cannot read results of a run from {path}: {error}") from None
    run = Run(folder)
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn, or nothing
        try:
            record = json.loads(line)
            run.add(record)
        except (ValueError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}, line {number} is no result: {error!r}") from None
    if run.starts and run.start.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: schema {run.start.get('schema')!r}, expected {SCHEMA!r}")
    return run
