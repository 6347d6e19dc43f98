"""Grids: named axes whose product are cells, read from a file and narrowed by options."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from slimcore.bench.grid.cells import DENSE, DEVICES, DTYPES, HEAL, TIMED, Cell, parse_method
from slimcore.errors import ResultsError, UnknownNameError
from slimcore.methods import method_named


@dataclass(frozen=True)
class Grid:
    """Named axes; `cells` is their product, each model and method together, small batches first."""

    name: str
    device: str
    dtype: str
    engines: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    batches: tuple[int, ...]
    models: Mapping[str, tuple[str, ...]]  # model -> its methods
    rounds: int = 1
    protocol: str = "adaptive"

    def cells(self) -> list[Cell]:
        """Every cell, in the order in which measuring builds each subject once."""
        subjects = [(model, method) for model, methods in self.models.items() for method in methods]
        return [
            Cell(model, method, inputs, outputs, batch, engine, self.dtype, self.device, round_, self.protocol)
            for round_, (model, method), engine, outputs, inputs, batch in product(
                range(1, self.rounds + 1), subjects, self.engines, self.outputs, self.inputs, sorted(self.batches)
            )
        ]

    def narrow(
        self,
        *,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        inputs: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
        batches: Sequence[int] | None = None,
        engines: Sequence[str] | None = None,
    ) -> Grid:
        """The grid with axes replaced; a model that is new to it is measured with the methods of the first one.

        `methods` are names (`depth-ppl`: as this grid has it) or names with a budget (`depth-ppl:0.35`).
        """
        default = next(iter(self.models.values()))
        chosen = {m: self.models.get(m, default) for m in models} if models else dict(self.models)
        if methods:
            chosen = {m: _pick(methods, has) for m, has in chosen.items()}
        return replace(
            self,
            models=chosen,
            inputs=tuple(inputs or self.inputs),
            outputs=tuple(outputs or self.outputs),
            batches=tuple(batches or self.batches),
            engines=tuple(engines or self.engines),
        )


def load_grids(path: Path) -> dict[str, Grid]:
    """Read a grids file. Raises ResultsError where it is malformed, UnknownNameError for a method that is not known."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read grids from {path}: {error}") from None
    return {name: _grid(name, table, path) for name, table in tables.items()}


def grid_named(grids: Mapping[str, Grid], name: str) -> Grid:
    """The grid called `name`. Raises UnknownNameError with the nearest."""
    if name not in grids:
        raise UnknownNameError("grid", name, grids)
    return grids[name]


def grid_of_tests(device: str) -> Grid:
    """The grid of tests that time code of their own: they are its cells, and it has no axes."""
    return Grid(TIMED, device, "", (), (), (), (), {})


def _grid(name: str, table: Mapping[str, Any], path: Path) -> Grid:
    if name == TIMED:
        raise ResultsError(f"{path}: a grid cannot be called {TIMED!r}: tests that take `timed` are; rename it")
    try:
        grid = Grid(
            name=name,
            device=table["device"],
            dtype=table["dtype"],
            engines=tuple(table["engines"]),
            models={model: tuple(methods) for model, methods in table["models"].items()},
            inputs=_numbers(table["inputs"]),
            outputs=_numbers(table["outputs"]),
            batches=_numbers(table["batches"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultsError(f"{path}: grid {name!r} is malformed ({type(error).__name__}: {error})") from None
    for kind, value, known in (("device", grid.device, DEVICES), ("dtype", grid.dtype, DTYPES)):
        if value not in known:
            raise UnknownNameError(kind, value, known)
    for methods in grid.models.values():
        for method in methods:
            parse_method(method)
    return grid


def _numbers(values: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(int(v) for v in values)
    if not numbers or min(numbers) < 1:
        raise ValueError(f"expected numbers of 1 or more (got {list(numbers)})")
    return numbers


def _pick(wanted: Sequence[str], has: Sequence[str]) -> tuple[str, ...]:
    """The grid's own form of each wanted method, or the wanted form itself where it names a budget."""
    chosen: list[str] = []
    for spec in wanted:
        if ":" in spec or spec == DENSE:
            parse_method(spec)
            chosen.append(spec)
            continue
        plain = spec.removesuffix(HEAL)
        method_named(plain)
        # A healed cut takes as much as the method that the grid has without healing.
        healed = [s.replace(plain, spec, 1) for s in has if s.partition(":")[0] == plain]
        own = [s for s in has if s.partition(":")[0] == spec] or healed
        if not own:
            raise ResultsError(f"this grid has no {spec!r}: say how much to cut, as in {spec}:0.27")
        chosen += own
    return tuple(dict.fromkeys(chosen))
