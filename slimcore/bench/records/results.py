"""A run's folder: a JSON line a thing done, written the moment it ends; read again whatever was torn.

Each process that measures has a file of its own there, `results*.jsonl`, and holds its lock.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.bench.grid.cells import Key
from slimcore.bench.records.records import KINDS, SCHEMA, Begun, Line, Measurement, Start, Subject, dense_of
from slimcore.errors import ResultsError
from slimcore.validation import validated

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from filelock import BaseFileLock

FILE = "results.jsonl"


@dataclass
class Run:
    """A run as its lines tell it."""

    folder: Path
    file: str = FILE  # that this process adds to
    starts: list[Start] = field(default_factory=list)
    subjects: dict[Key, Subject] = field(default_factory=dict)
    others: dict[Key, Subject] = field(default_factory=dict)  # of the version measured beside this one
    cells: dict[str, Measurement] = field(default_factory=dict)  # by id; what ended later replaces the earlier
    begun: Counter[str] = field(default_factory=Counter)  # ids of cells: how often, without a record after it
    weights: dict[str, str] = field(default_factory=dict)  # hashes, by dense_of()
    torn: list[str] = field(default_factory=list)  # places of lines that could not be read
    _lock: BaseFileLock | None = None

    @property
    def start(self) -> Start:
        """The newest start: grid, machine, software, planned cells."""
        return max(self.starts, key=lambda start: start.started)

    @property
    def began(self) -> list[str]:
        """When each start was, the first first: that names the run's night."""
        return sorted(start.started for start in self.starts)

    @property
    def planned(self) -> list[str]:
        """Ids of all cells this run has set out to measure."""
        return list(dict.fromkeys(cell for start in self.starts for cell in start.cells))

    @property
    def done(self) -> dict[str, Measurement]:
        """Cells that need not be measured again: all but errors."""
        return {i: c for i, c in self.cells.items() if c.status != "error"}

    def add(self, line: Line) -> None:
        """Take one line in."""
        match line:
            case Start():
                self.starts.append(line)
            case Subject():
                (self.others if line.other else self.subjects)[line.key] = line
                if not line.other:
                    self.weights[dense_of(line.key)] = line.weights
            case Begun():
                self.begun[line.cell] += 1
            case Measurement():
                self.begun.pop(line.id, None)
                known = self.cells.get(line.id)
                if known is None or line.ended >= known.ended:
                    self.cells[line.id] = line

    def append(self, line: Line) -> None:
        """Write one line, whole and on the disk before this returns. Raises ResultsError where there is no room."""
        self.add(line)
        path = self.folder / self.file
        (kind,) = [name for name, of in KINDS.items() if isinstance(line, of)]
        text = json.dumps({"kind": kind} | without_defaults(line), separators=(",", ":"), allow_nan=False)
        try:
            with path.open("ab+") as file:
                # Where a process died, or the disk was full, in the middle of a line, only that line is lost.
                if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                    text = f"\n{text}"
                file.write(f"{text}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResultsError(f"cannot write to {path} ({error.strerror}): make room, then --perf-resume") from None

    def lock(self) -> None:
        """Keep others from writing to this run's file. Raises ResultsError where one does."""
        from filelock import FileLock, Timeout

        self._lock = FileLock(self.folder / f".{self.file}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ResultsError(
                f"another process is writing to {self.folder}: wait for it, or start a new run"
            ) from None

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()


def grouped(cells: Iterable[Measurement], *names: str) -> list[list[Measurement]]:
    """Measurements whose cells are alike in `names`, in the order in which each group begins."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for one in cells:
        groups.setdefault(tuple(getattr(one.cell, name) for name in names), []).append(one)
    return list(groups.values())


def in_order(cells: Iterable[Measurement]) -> list[Measurement]:
    """As a grid has them, whatever piece of it came first: small batches first, all else as it first appears."""
    cells = list(cells)
    names = ("round", "model", "method", "engine", "dtype", "input_tokens", "output_tokens")
    rank = {n: {value: k for k, value in enumerate(dict.fromkeys(getattr(c.cell, n) for c in cells))} for n in names}
    return sorted(cells, key=lambda c: (*(rank[n][getattr(c.cell, n)] for n in names), c.cell.batch))


def stamp() -> str:
    """Names a run: its start, to a second."""
    return time.strftime("%Y%m%d-%H%M%S")


def create(reports: Path, grid: str) -> Run:
    """Make a new run folder `<grid>-<date>-<time>` below `reports`, and lock it. Raises ResultsError."""
    stem = f"{grid}-{stamp()}"
    try:
        reports.mkdir(parents=True, exist_ok=True)
        for name in [stem, *(f"{stem}-{n}" for n in range(2, 100))]:
            if not (reports / name).exists():
                (reports / name).mkdir()
                return _opened(Run(reports / name))
    except OSError as error:
        raise ResultsError(f"cannot write reports to {reports}: {error}") from None
    raise ResultsError(f"{reports} has a hundred runs of this second: {stem}")


def share(reports: Path, name: str, worker: str) -> Run:
    """Open the run folder `name` that several processes write to, each its own file. Raises ResultsError."""
    folder = reports / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _opened(Run(folder, _file(worker)))
    except OSError as error:
        raise ResultsError(f"cannot write reports to {reports}: {error}") from None


def resume(reports: Path, name: str, grid: str, worker: str = "") -> Run:
    """Open a run to go on with: `name` below `reports`, or the newest one of `grid` where `name` is `latest`.

    Raises ResultsError, also where another process writes to it.
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
    return _opened(run)


def read(folder: Path) -> Run:
    """Read a run; a torn line is passed over, and told in `torn`. Raises ResultsError for what is no result."""
    paths = sorted(folder.glob("results*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name))
    if not paths:
        raise ResultsError(f"cannot read results of a run from {folder / FILE}: there is none")
    run = Run(folder)
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ResultsError(f"cannot read results of a run from {path}: {error}") from None
        for number, line in enumerate(lines, 1):
            if line:
                _read_line(run, line, f"{path}, line {number}")
    return run


def _read_line(run: Run, line: bytes, where: str) -> None:
    try:
        record = json.loads(line)
        kind = record.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError):
        run.torn.append(where)
        return
    if kind == "run" and record.get("schema") != SCHEMA:
        raise ResultsError(f"{where}: schema {record.get('schema')!r}, expected {SCHEMA!r}: measure it anew")
    if kind not in KINDS:
        raise ResultsError(f"{where}: a line of unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    run.add(validated(KINDS[kind], record, where, ResultsError))


def without_defaults(record: DataclassInstance) -> dict[str, Any]:
    """The fields of `record` that say something."""
    told = asdict(record)
    return {f.name: told[f.name] for f in fields(record) if getattr(record, f.name) != f.default}


def _opened(run: Run) -> Run:
    run.lock()
    (run.folder / run.file).touch()
    return run


def _file(worker: str) -> str:
    return f"results-{worker}.jsonl" if worker else FILE
