"""Accepted measurements: `baselines/<machine>/<grid>.json`, read, checked and replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimcore.bench.results import Run
from slimcore.errors import ResultsError
from slimcore.files import write_text

SCHEMA = "slimcore.baseline/1"


@dataclass(frozen=True)
class Baseline:
    """What a machine was accepted to do on one grid."""

    path: Path
    cells: Mapping[str, dict[str, Any]]  # id -> status and raw latency samples
    software: Mapping[str, Any]  # versions when accepted


def path_of(folder: Path, machine: str, grid: str) -> Path:
    """Where the baseline of `grid` on `machine` lies."""
    return folder / machine / f"{grid}.json"


def read(path: Path) -> Baseline | None:
    """Read a baseline; None where there is none yet. Raises ResultsError where the file is not one."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is not JSON ({error}): restore it from version control, or delete it") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ResultsError(f"{path} has schema {schema!r}, expected {SCHEMA!r}: accept it anew with --perf-update")
    cells = data.get("cells")
    if not isinstance(cells, dict) or not all(isinstance(c, dict) and "status" in c for c in cells.values()):
        raise ResultsError(f"{path} has no cells with a status: restore it from version control, or delete it")
    return Baseline(path, cells, data.get("software", {}))


def accept(path: Path, run: Run, planned: set[str]) -> int:
    """Make `run` the baseline at `path` and return how many cells it changed; cells outside the run are kept.

    `planned`: ids of the whole grid; accepted cells that are no longer in it are dropped.
    Raises ResultsError where a cell of the run failed or was not measured.
    """
    missing = [i for i in run.planned if i not in run.done]
    if missing:
        raise ResultsError(
            f"{len(missing)} of {len(run.start['cells'])} cells have no result to accept"
            f" ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): finish the run with --perf-resume"
        )
    old = read(path)
    kept = {i: c for i, c in (old.cells if old else {}).items() if i in planned}
    new = {i: {"status": c["status"], "latency_s": c["latency_s"]} for i, c in run.done.items() if i in run.planned}
    cells = dict(sorted((kept | new).items()))
    # One line a cell: a pull request shows which moved.
    body = ",\n".join(f"  {json.dumps(i)}: {json.dumps(c)}" for i, c in cells.items())
    head = {"schema": SCHEMA, "machine": run.start["machine"], "grid": run.start["grid"]}
    fields = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in (head | {"software": run.start["software"]}).items()]
    write_text(path, "{\n" + ",\n".join([*fields, f' "cells": {{\n{body}\n }}']) + "\n}\n")
    return len(new)
