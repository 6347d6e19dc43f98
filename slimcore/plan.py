"""Scores, Plan and select(): pure data and arithmetic; no torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from slimcore.errors import BudgetError, PlanError
from slimcore.files import write_text

SCHEMA = "slimcore.plan/1"

# "+" of Shortened LLaMA (arXiv 2402.02834): the first four and last two layers are never cut.
PLUS_RULE = (4, 2)

_BUDGET = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>L|M|B)?")


@dataclass(frozen=True)
class Budget:
    """How much to cut: exactly one of a share of block parameters, parameters left, or layers removed."""

    ratio: float | None = None
    params: int | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            raise BudgetError(f"give exactly one of ratio=, params=, layers= (got {', '.join(given) or 'none'})")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise BudgetError(f"ratio must lie between 0 and 1, both excluded (got {self.ratio})")
        for name in ("params", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BudgetError(f"{name} must be 1 or more (got {value})")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the short form: `0.27` is a ratio, `9L` layers removed, `4.9B` or `99M` parameters left."""
        match = _BUDGET.fullmatch(text)
        if not match:
            raise BudgetError(f"budget {text!r} is not a ratio (0.27), layers removed (9L) or parameters left (4.9B)")
        number, unit = float(match["number"]), match["unit"]
        if unit == "L":
            return cls(layers=int(number))
        if unit:
            return cls(params=round(number * {"M": 1e6, "B": 1e9}[unit]))
        return cls(ratio=number)

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{self.ratio:g}"
        if self.layers is not None:
            return f"{self.layers}L"
        assert self.params is not None
        unit, size = ("B", 1e9) if self.params >= 1e9 else ("M", 1e6)
        return f"{self.params / size:g}{unit}"

    def as_dict(self) -> dict[str, float]:
        """The one field that is set, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class Scores:
    """Importance of each layer of one model: low = cut first."""

    method: str
    values: tuple[float, ...]  # one a layer
    layer_parameters: tuple[int, ...]  # one a layer
    total_parameters: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = [i for i, v in enumerate(self.values) if not math.isfinite(v)]
        if bad:
            raise PlanError(f"{self.method} scored layers {bad} as not finite; score a float32 copy of the model")

    @property
    def order(self) -> tuple[int, ...]:
        """Layer indices, least important first; equal scores in order of depth."""
        return tuple(sorted(range(len(self.values)), key=lambda i: (self.values[i], i)))


@dataclass(frozen=True)
class Plan:
    """What is kept, with provenance: printed, compared, stored and replayed."""

    method: str
    num_layers: int
    keep: tuple[int, ...]  # kept layer indices, ascending
    budget: dict[str, float]
    parameters: int  # left after the cut
    parameters_before: int
    ratio: float  # achieved: share of block parameters removed
    scores: tuple[float, ...] = ()
    protect: tuple[int, int] = PLUS_RULE
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = list(self.keep)
        if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.num_layers:
            raise PlanError(f"keep must be ascending layer indices within 0..{self.num_layers - 1} (got {kept})")

    @property
    def removed(self) -> tuple[int, ...]:
        """Removed layer indices, ascending."""
        return tuple(sorted(set(range(self.num_layers)) - set(self.keep)))

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {"schema": SCHEMA} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: object, where: str = "plan") -> Self:
        """Rebuild a plan from `as_dict`; `where` names its place in errors. Raises PlanError."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise PlanError(f"{where}: not a plan of schema {SCHEMA!r} (found {found!r})")
        values: dict[str, Any] = {k: v for k, v in data.items() if k != "schema"}
        try:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**values)
        except TypeError as error:
            raise PlanError(f"{where}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan written by `save`. Raises PlanError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read a plan from {path}: {error}") from None
        return cls.from_dict(data, where=str(path))

    def __str__(self) -> str:
        kept = set(self.keep)
        strip = "".join("#" if i in kept else "." for i in range(self.num_layers))
        return (
            f"{self.method}: {len(self.removed)} of {self.num_layers} layers go"
            f" ({self.ratio:.1%} of block parameters)\n"
            f"  parameters  {self.parameters_before:,} -> {self.parameters:,}\n"
            f"  layers      [{strip}]  # kept, . removed\n"
            f"  removed     {', '.join(map(str, self.removed)) or 'none'}"
        )


def select(
    scores: Scores,
    *,
    ratio: float | None = None,
    params: int | None = None,
    layers: int | None = None,
    protect: tuple[int, int] = PLUS_RULE,
) -> Plan:
    """Choose what goes: the lowest scores, one-shot, until the budget is met as nearly as whole layers allow.

    `ratio`: share of block parameters removed; `params`: parameters left; `layers`: layers removed.
    `protect`: so many first and last layers never go ("+" of Shortened LLaMA); (0, 0) switches it off.
    Raises BudgetError where the budget is malformed or out of reach.
    """
    budget = Budget(ratio=ratio, params=params, layers=layers)
    first, last = protect
    if first < 0 or last < 0:
        raise BudgetError(f"protect must be two numbers of layers, 0 or more (got {protect})")
    count = len(scores.values)
    candidates = [i for i in scores.order if first <= i < count - last]
    # One layer at least stays, whatever is protected.
    reach = min(len(candidates), count - 1)
    number = _layers_to_remove(scores, budget, candidates[:reach])
    if number > reach:
        raise BudgetError(
            f"{_budget_text(budget)} asks for {number} of {count} layers, but at most {reach} may be cut"
            f" (the first {first} and last {last} are protected, and one always stays):"
            " ask for less, or protect fewer layers"
        )
    removed = set(candidates[:number])
    cut = sum(scores.layer_parameters[i] for i in removed)
    return Plan(
        method=scores.method,
        num_layers=count,
        keep=tuple(i for i in range(count) if i not in removed),
        budget=budget.as_dict(),
        parameters=scores.total_parameters - cut,
        parameters_before=scores.total_parameters,
        ratio=cut / sum(scores.layer_parameters),
        scores=scores.values,
        protect=protect,
        provenance=scores.provenance,
    )


def _layers_to_remove(scores: Scores, budget: Budget, candidates: Sequence[int]) -> int:
    """How many candidates, from the front, come nearest to the budget."""
    if budget.layers is not None:
        return budget.layers
    if budget.ratio is not None:
        target = budget.ratio * sum(scores.layer_parameters)
    else:
        assert budget.params is not None
        target = scores.total_parameters - budget.params
        if target < 0:
            raise BudgetError(f"params={budget.params:,} is more than the model has ({scores.total_parameters:,})")
    cuts = [0]
    for layer in candidates:
        cuts.append(cuts[-1] + scores.layer_parameters[layer])
    nearest = min(range(len(cuts)), key=lambda n: abs(cuts[n] - target))
    largest = max(scores.layer_parameters)
    # Out of reach only if one more whole layer would have come nearer.
    return nearest if target - cuts[-1] <= largest / 2 else math.ceil((target - cuts[-1]) / largest) + len(candidates)


def _budget_text(budget: Budget) -> str:
    ((name, value),) = budget.as_dict().items()
    return f"{name}={value:,}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
