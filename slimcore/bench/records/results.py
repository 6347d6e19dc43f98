"""One JSON line a thing measured, written the moment it ends; reading back what a killed run left; joining runs.

Kinds of line: `run` (grid, machine, software; one a start), `subject` (footprint, perplexity, plan), `against` (the
same of the version measured beside), `cell`. Each process that measures has a file of its own, `results*.jsonl`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimcore.bench.statistics import summarise
from slimcore.errors import ResultsError
from slimcore.files import new_folder

SCHEMA = "slimcore.results/3"
FILE = "results.jsonl"

Record = dict[str, Any]


@dataclass
class Run:
    """A run as its lines tell it."""

    folder: Path
    file: str = FILE  # that this process adds to
    starts: list[Record] = field(default_factory=list)
    subjects: dict[tuple[str, str], Record] = field(default_factory=dict)
    against: dict[tuple[str, str], Record] = field(default_factory=dict)
    cells: dict[str, Record] = field(default_factory=dict)  # by id; what ended later replaces the earlier

    @property
    def start(self) -> Record:
        """The newest start: grid, machine, software, planned cells."""
        return max(self.starts, key=lambda start: str(start["started"]))

    @property
    def began(self) -> list[str]:
        """When each start was, the first first: that names the run's night."""
        return sorted(str(start["started"]) for start in self.starts)

    @property
    def planned(self) -> list[str]:
        """Ids of all cells this run has set out to measure."""
        return list(dict.fromkeys(cell for start in self.starts for cell in start["cells"]))

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
            case "against":
                self.against[record["model"], record["method"]] = record
            case "cell":
                known = self.cells.get(record["id"])
                if known is None or record.get("ended", 0) >= known.get("ended", 0):
                    self.cells[record["id"]] = record
            case other:
                raise ResultsError(f"{self.folder / FILE}: a line of unknown kind {other!r}")


def throughput(cell: Record) -> float:
    """Generated tokens a second of a cell, all rows together, at the median latency."""
    return float(cell["batch"] * cell["output_tokens"] / summarise(cell["latency_s"]).centre)


def grouped(cells: Iterable[Record], *names: str) -> list[list[Record]]:
    """Cells alike in `names`, in the order in which each group begins."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return list(groups.values())


def in_order(cells: Iterable[Record]) -> list[Record]:
    """As a grid has them, whatever piece of it came first: small batches first, all else as it first appears."""
    cells = list(cells)
    names = ("round", "model", "method", "engine", "dtype", "input_tokens", "output_tokens")
    rank = {n: {value: k for k, value in enumerate(dict.fromkeys(c[n] for c in cells))} for n in names}
    return sorted(cells, key=lambda c: (*(rank[n][c[n]] for n in names), c["batch"]))


def append(run: Run, record: Mapping[str, Any]) -> None:
    """Add one line to `run`, whole and on the disk before this returns."""
    with (run.folder / run.file).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())
    run.add(dict(record))


def stamp() -> str:
    """Names a run: its start, to a second."""
    return time.strftime("%Y%m%d-%H%M%S")


def create(reports: Path, grid: str) -> Run:
    """Make a new run folder `<grid>-<date>-<time>` below `reports`. Raises ResultsError."""
    stem = f"{grid}-{stamp()}"
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


def share(reports: Path, name: str, worker: str) -> Run:
    """Open the run folder `name` that several processes write to, each its own file. Raises ResultsError."""
    folder = reports / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _file(worker)).touch()
    except OSError as error:
        raise ResultsError(f"cannot write reports to {reports}: {error}") from None
    return Run(folder, _file(worker))


def resume(reports: Path, name: str, grid: str, worker: str = "") -> Run:
    """Open a run to go on with: `name` below `reports`, or the newest one of `grid` where `name` is `latest`.

    A torn last line of the file that is added to is cut off: its cell is measured again. Raises ResultsError.
    """
    if name == "latest":
        runs = sorted((p.stat().st_mtime, p.parent) for p in reports.glob(f"{grid}-*/results*.jsonl"))
        if not runs:
            raise ResultsError(f"no run of grid {grid!r} to resume in {reports}: start one without --perf-resume")
        folder = runs[-1][1]
    else:
        folder = reports / name
    run = read(folder)
    run.file = _file(worker)
    path = folder / run.file
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return run


def read(folder: Path) -> Run:
    """Read a run; a torn last line is passed over, any other that is not JSON is an error. Raises ResultsError."""
    paths = sorted(folder.glob("results*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name))
    if not paths:
        raise ResultsError(f"cannot read results of a run from {folder / FILE}: there is none")
    run = Run(folder)
    for path in paths:
        _read_into(run, path)
    for start in run.starts:
        if start.get("schema") != SCHEMA:
            raise ResultsError(f"{folder}: schema {start.get('schema')!r}, expected {SCHEMA!r}: measure it anew")
    return run


def join(runs: Sequence[Run], into: Path) -> Run:
    """One run of several parts, written whole to the new folder `into`. Raises ResultsError where they do not fit."""
    first = runs[0]
    for run in runs:
        if not run.starts:
            raise ResultsError(f"{run.folder} has no start: nothing was measured there")
        for what in ("grid", "machine", "device"):
            if run.start[what] != first.start[what]:
                raise ResultsError(
                    f"{run.folder} is of {what} {run.start[what]!r}, {first.folder} of {first.start[what]!r}:"
                    " only parts of one grid on one kind of machine are joined"
                )
        commits = {r.start["software"].get("commit") for r in (first, run)}
        if len(commits) > 1:
            raise ResultsError(f"{run.folder} and {first.folder} measured different commits: {_list(commits)}")
    twice = [i for n, run in enumerate(runs) for i in run.cells if any(i in other.cells for other in runs[:n])]
    if twice:
        raise ResultsError(f"{len(twice)} cells are in more than one part, {twice[0]} among them: give each part once")
    lost = _missing_shards(runs)
    if lost:
        raise ResultsError(f"parts {_list(lost)} of --perf-shard are missing: measure them, and give them too")
    _check_free(into)
    joined = Run(into)
    with new_folder(into) as folder:
        joined.folder = folder
        for run in runs:
            for record in (*run.starts, *run.subjects.values(), *run.against.values(), *run.cells.values()):
                append(joined, record)
    joined.folder = into
    return joined


def _check_free(folder: Path) -> None:
    """Raise ResultsError where something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResultsError(f"{folder} is there already: choose another place for the whole")


def _missing_shards(runs: Sequence[Run]) -> set[str]:
    """Parts of a sharded grid that are not among `runs`."""
    have = {start["shard"] for run in runs for start in run.starts if start.get("shard")}
    return {f"{k}/{n}" for n in {part.split("/")[1] for part in have} for k in range(1, int(n) + 1)} - have


def _read_into(run: Run, path: Path) -> None:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"cannot read results of a run from {path}: {error}") from None
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn, or nothing
        try:
            record = json.loads(line)
            run.add(record)
        except (ValueError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}, line {number} is no result: {error!r}") from None


def _file(worker: str) -> str:
    return f"results-{worker}.jsonl" if worker else FILE


def _list(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))
