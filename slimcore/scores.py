"""LayerShape and Scores: a model in numbers, and how much each of its structures matters. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from slimcore.errors import BudgetError, PlanError
from slimcore.validation import Strict, check_count, shown

# "+" of Shortened LLaMA (arXiv 2402.02834): the first four and last two layers are never cut.
PLUS_RULE = (4, 2)

# How FLAP (arXiv 2312.11983) shares a budget out: L over layers, M over attention and MLP;
# U uniform, A adaptive (whatever scores lowest goes), M manual (a share for each).
ALLOCATIONS = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")


def checked_protection(protect: tuple[int, int]) -> tuple[int, int]:
    """So many first and last layers that are not cut. Raises BudgetError."""
    numbers = protect if isinstance(protect, tuple) else ()
    if len(numbers) != 2 or any(type(number) is not int or number < 0 for number in numbers):
        raise BudgetError(f"protect must be two numbers of layers, 0 or more (got {shown(protect)})")
    return protect


@dataclass(frozen=True)
class LayerShape(Strict):
    """One layer in numbers: its parameters, and those of each structure that can be cut from it."""

    parameters: int
    hidden: int
    head_dim: int
    heads: int
    kv_groups: int
    kv_group_parameters: int  # of one, its query heads included
    channels: int
    channel_parameters: int  # of one
    o_bias: bool  # whether the projections back to the hidden size have biases
    down_bias: bool

    def __post_init__(self) -> None:
        sizes = (self.parameters, self.hidden, self.head_dim, self.heads, self.kv_groups, self.kv_group_parameters,
                 self.channels, self.channel_parameters)  # fmt: skip
        for size in sizes:
            check_count("a layer's sizes", size)
        if self.heads % self.kv_groups:
            raise PlanError(f"a layer's heads must divide evenly among its KV groups (got {self})")

    @property
    def group_inputs(self) -> int:
        """Inputs of o_proj that belong to one KV group."""
        return self.heads // self.kv_groups * self.head_dim


@dataclass(frozen=True)
class Widths(Strict):
    """Importance of what is inside one layer: low = cut first; empty where it was not scored."""

    kv_groups: tuple[float, ...]
    channels: tuple[float, ...]


@dataclass(frozen=True)
class Means(Strict):
    """Mean inputs of a layer's two output projections over the calibration tokens, to make up for those that go."""

    o: tuple[float, ...]  # one an input of o_proj
    down: tuple[float, ...]  # one an input of down_proj


@dataclass(frozen=True)
class Scores(Strict):
    """Importance of the structures of one model, low = cut first: of its layers, or of what is inside them."""

    method: str
    shapes: tuple[LayerShape, ...]  # one a layer
    total_parameters: int
    values: tuple[float, ...] = ()  # depth: one a layer
    widths: tuple[Widths, ...] = ()  # width: one a layer
    means: tuple[Means, ...] = ()  # one a layer, of methods that compensate with biases
    bytes_per_parameter: float = 4
    protect: tuple[int, int] = PLUS_RULE  # of select(), unless told otherwise; so is the next
    allocation: str = "UL-UM"
    standardised: bool = False  # scores of all layers and of both kinds can stand in one list as they are
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.shapes)
        if bool(self.values) == bool(self.widths) or len(self.values or self.widths) != count:
            raise PlanError(
                f"scores must be one value a layer, or the widths of each: got {len(self.values)} values and"
                f" {len(self.widths)} widths for {count} layers"
            )
        bad = [i for i, v in enumerate(self.values) if not math.isfinite(v)]
        bad += [i for i, w in enumerate(self.widths) if not all(map(math.isfinite, (*w.kv_groups, *w.channels)))]
        bad += [i for i, m in enumerate(self.means) if not all(map(math.isfinite, (*m.o, *m.down)))]
        if bad:
            raise PlanError(
                f"{self.method} scored layers {bad} as not finite: weights are not finite, or far out of scale"
            )

    @property
    def order(self) -> tuple[int, ...]:
        """Layer indices, least important first; equal scores in order of depth."""
        return tuple(sorted(range(len(self.values)), key=lambda i: (self.values[i], i)))
