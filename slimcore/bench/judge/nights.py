"""Files of what was accepted: a night, a line a cell; costs, a line a subject. A pull request shows what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimcore.bench.grid.cells import Cell, Key
from slimcore.bench.records.records import Fact, Measurement, Status, Subject, Times, dense_of
from slimcore.bench.records.results import without_defaults
from slimcore.errors import ResultsError
from slimcore.files import write_text
from slimcore.validation import Strict, validated

SCHEMA = "slimcore.baseline/3"
COSTS_SCHEMA = "slimcore.costs/2"
NO_TIMES = Times()
KEY = ("model", "method", "dtype")
_REMEDY = "restore it from version control, or delete it and accept anew with --perf-update"


@dataclass(frozen=True)
class Accepted(Strict):
    """One cell on one night."""

    status: Status
    times: Times = NO_TIMES
    conditions: Mapping[str, Fact] | None = None  # of the device

    @classmethod
    def of(cls, measured: Measurement) -> Accepted:
        """What of a measurement is accepted: five digits are more than any clock is good for."""
        if not measured.ran:
            return cls(measured.status)
        latency_s = tuple(float(f"{seconds:.5g}") for seconds in measured.times.latency_s)
        return cls(measured.status, replace(measured.times, latency_s=latency_s), measured.conditions)


@dataclass(frozen=True)
class Night(Strict):
    """One accepted run of a machine."""

    machine: str
    grid: str
    device: str
    started: str
    reason: str
    pinned: bool  # a release, to measure drift against
    software: Mapping[str, Fact]
    weights: Mapping[str, str]  # hashes, by dense_of()
    moved: tuple[str, ...]  # cells that start anew here: their earlier nights no longer count
    gone: tuple[str, ...]  # cells that the grid no longer has
    cells: Mapping[str, Accepted]  # by id
    path: Path = Path()

    def weights_of(self, cell: str) -> str | None:
        """The hash of the weights that a cell was measured with; None where its model could not be loaded."""
        return self.weights.get(dense_of(Cell.of_id(cell, self.device).subject))


def read_night(path: Path) -> Night:
    """Read one night. Raises ResultsError."""
    night = replace(validated(Night, _object(path, SCHEMA), str(path), ResultsError), path=path)
    for name, cell in night.cells.items():
        try:
            Cell.of_id(name, night.device)
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}: {_REMEDY}") from None
        if cell.status == "ok" and not cell.times.latency_s:
            raise ResultsError(f"{path}: {name} is ok without latency_s: {_REMEDY}")
    return night


def write_night(night: Night) -> None:
    """Write it to its path."""
    head = {name: value for name, value in vars(night).items() if name not in ("cells", "path")}
    lines = {name: without_defaults(cell) for name, cell in night.cells.items()}
    write_text(night.path, _document({"schema": SCHEMA} | head, "cells", lines))


def read_costs(path: Path) -> dict[Key, Subject]:
    """Read the subjects of a grid; none where the file is not there. Raises ResultsError."""
    if not path.exists():
        return {}
    data = _object(path, COSTS_SCHEMA)
    lines = validated(dict[str, dict[str, Any]], data.get("subjects"), f"{path}: subjects", ResultsError)
    named = {name: line | dict(zip(KEY, name.rsplit("/", 2), strict=False)) for name, line in lines.items()}
    read = [validated(Subject, subject, f"{path}: {name}", ResultsError) for name, subject in named.items()]
    return {subject.key: subject for subject in read}


def write_costs(path: Path, grid: str, subjects: Mapping[Key, Subject]) -> None:
    """Write what the subjects of a grid cost, without how they were built."""
    lines = {s.name: without_defaults(replace(s, plan=None, seconds=0.0)) for s in subjects.values()}
    kept = {name: {k: v for k, v in line.items() if k not in KEY} for name, line in lines.items()}
    write_text(path, _document({"schema": COSTS_SCHEMA, "grid": grid}, "subjects", kept))


def _document(head: Mapping[str, Any], name: str, lines: Mapping[str, Any]) -> str:
    """JSON with a line an entry of `lines`, in order of their names."""
    body = ",\n".join(f"  {_json(k)}: {_json(v)}" for k, v in sorted(lines.items()))
    fields = [f" {_json(k)}: {_json(v)}" for k, v in head.items()]
    return "{\n" + ",\n".join([*fields, f" {_json(name)}: {{\n{body}\n }}"]) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _object(path: Path, schema: str) -> dict[str, Any]:
    """The fields of a file without its schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is not JSON ({error}): {_REMEDY}") from None
    found = data.pop("schema", None) if isinstance(data, dict) else None
    if found != schema:
        raise ResultsError(f"{path} has schema {found!r}, expected {schema!r}: {_REMEDY}")
    return dict(data)
