"""Plan: what is kept, as data, and how that was found. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from slimcore import plan_json
from slimcore.budget import Budget
from slimcore.errors import PlanError
from slimcore.files import write_text
from slimcore.kept import Width, others
from slimcore.picture import picture
from slimcore.scores import LayerShape, Widths, checked_protection
from slimcore.validation import Strict, check_count, check_each, check_finite, check_indices, check_kind, shown

HEALING_WINDOWS = (320, 128)  # of calibration, which the built-in text has, where nothing else is asked for
BETWEEN = " + "  # the names of several texts, and their hashes
THEN = ", then "  # the methods of several steps

Record = dict[str, Any]  # JSON types


@dataclass(frozen=True)
class Step(Strict):
    """One cut: how it was found, and what was done to its model after it."""

    method: str
    budget: Budget | None = None  # what was asked, where `Plan.ratio` is what was achieved
    scored: Record = field(default_factory=dict)  # on what: metric, tokens, digest of the weights
    healed: Record = field(default_factory=dict)  # on what, and what it changed; empty: it was not
    recovered: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind("method", self.method, str)
        if self.budget is not None:
            check_kind("budget", self.budget, Budget)
        for name in ("scored", "healed", "recovered"):
            check_kind(name, getattr(self, name), dict)
            try:
                # A copy, of the types that a file gives back.
                record = json.loads(json.dumps(getattr(self, name), allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise PlanError(f"{name} must hold what JSON can: {error}") from None
            object.__setattr__(self, name, record)

    @property
    def texts(self) -> set[str]:
        """Hashes of the texts that the cut was found, and its model healed and recovered, on."""
        return set(_texts([self.scored, self.healed, self.recovered]))


@dataclass(frozen=True)
class Plan(Strict):
    """What is kept, and how that was found: printed, compared, stored, replayed and composed."""

    method: str  # of each step
    shapes: tuple[LayerShape, ...]  # of the model it is for, one a layer
    parameters_before: int
    keep: tuple[int, ...]  # kept layer indices, ascending
    width: dict[int, Width] = field(default_factory=dict)  # of kept layers that lose something inside
    steps: tuple[Step, ...] = ()  # one a cut; none where it was made by hand
    multiple_of: int = 1
    protect: tuple[int, int] = (0, 0)
    scores: tuple[float, ...] = ()
    width_scores: tuple[Widths, ...] = ()

    def __post_init__(self) -> None:
        """Raise PlanError unless this can be cut out of a model of these shapes."""
        check_each("shapes", self.shapes, LayerShape)
        check_indices("keep", self.keep, self.num_layers)
        check_kind("width", self.width, dict)
        for layer, width in self.width.items():
            if type(layer) is not int or layer not in self.keep:
                raise PlanError(f"width names layer {shown(layer)}, which is not kept")
            check_kind(f"layer {layer}: width", width, Width)
            width.check(f"layer {layer}", self.shapes[layer])
        self._check_beside()

    def _check_beside(self) -> None:
        """Raise PlanError unless what stands beside the cut is that of a plan."""
        check_kind("method", self.method, str)
        check_each("steps", self.steps, Step)
        check_each("width_scores", self.width_scores, Widths)
        check_finite("scores", self.scores)
        check_count("parameters_before", self.parameters_before)
        check_count("multiple_of", self.multiple_of)
        checked_protection(self.protect)
        for name in ("scores", "width_scores"):
            if (found := len(getattr(self, name))) not in (0, self.num_layers):
                raise PlanError(f"{name} must be one for each of {self.num_layers} layers, or none (got {found})")
        methods = THEN.join(step.method for step in self.steps)
        if self.steps and self.method != methods:
            raise PlanError(f"method must be that of the steps, {methods!r} (got {shown(self.method)})")

    @property
    def num_layers(self) -> int:
        """Layers of the model the plan is for."""
        return len(self.shapes)

    @property
    def removed(self) -> tuple[int, ...]:
        """Removed layer indices, ascending."""
        return tuple(others(self.keep, self.num_layers))

    @property
    def parameters(self) -> int:
        """Parameters left after the cut."""
        return self.parameters_before - self._cut()

    @property
    def ratio(self) -> float:
        """Share of block parameters removed."""
        return self._cut() / sum(shape.parameters for shape in self.shapes)

    @property
    def texts(self) -> set[str]:
        """Hashes of the texts that it was found, and its model healed and recovered, on: of every step."""
        return {digest for step in self.steps for digest in step.texts}

    @property
    def weights_sha256(self) -> str | None:
        """`slimcore.digest.digest` of the model it was made for; None where it was made without weights."""
        return self.steps[0].scored.get("weights_sha256") if self.steps else None

    def inside(self, layer: int) -> Width:
        """What stays inside a kept layer, which may be all of it."""
        whole = self.shapes[layer]
        return self.width.get(layer) or Width(tuple(range(whole.kv_groups)), tuple(range(whole.channels)))

    def after(self) -> tuple[LayerShape, ...]:
        """Shapes of the layers of the pruned model."""
        return tuple(self.inside(i).after(self.shapes[i]) for i in self.keep)

    def then(self, second: Plan) -> Plan:
        """One plan that does both: `second` is for the model this one leaves. Raises PlanError where it is not."""
        if (second.shapes, second.parameters_before) != (self.after(), self.parameters):
            raise PlanError(
                f"the second plan is for {second.num_layers} layers and {second.parameters_before:,} parameters, the"
                f" first leaves {len(self.keep)} and {self.parameters:,}, or other widths: score the model it leaves"
            )
        keep = tuple(self.keep[i] for i in second.keep)
        width = {i: w for i, w in self.width.items() if i in keep}
        for i, after in second.width.items():
            layer = self.keep[i]
            width[layer] = self.inside(layer).then(after, self.shapes[layer], second.shapes[i])
        steps = self._steps() + second._steps()
        return Plan(
            THEN.join(step.method for step in steps), self.shapes, self.parameters_before, keep, width, steps,
            multiple_of=second.multiple_of,
        )  # fmt: skip

    def compare(self, other: Plan) -> str:
        """How many parameters both cut, and each alone, in one line. Raises PlanError on plans for different models."""
        if (self.shapes, self.parameters_before) != (other.shapes, other.parameters_before):
            raise PlanError(f"{self.method} and {other.method} are plans for different models: nothing to compare")
        mine, yours = self._structures(), other._structures()
        both = sum(size for one, size in mine.items() if one in yours)
        first, second = sum(mine.values()) - both, sum(yours.values()) - both
        return f"parameters cut by both {both:,}; by {self.method} alone {first:,}; by {other.method} alone {second:,}"

    def with_healing(self, record: Record) -> Self:
        """The same cut, whose model was healed; a figure that is not finite becomes null."""
        return self._with_last(healed=record)

    def with_recovery(self, record: Record) -> Self:
        """The same cut, whose model was trained; a figure that is not finite becomes null."""
        return self._with_last(recovered=record)

    def unhealed(self) -> Self:
        """The same cut, of a model whose weights are as they were."""
        return replace(self, steps=tuple(replace(step, healed={}, recovered={}) for step in self.steps))

    def without_width_scores(self) -> Self:
        """The same cut in a fraction of the space."""
        return replace(self, width_scores=())

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON types, with what it achieves."""
        return plan_json.written(self)

    @classmethod
    def from_dict(cls, data: object, where: str = "plan") -> Self:
        """Rebuild a plan from `as_dict`, of this version or an earlier one; `where` names its place in errors.

        Raises PlanError, in one line, for whatever is not exactly that.
        """
        return plan_json.read(cls, data, where)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_text(Path(path), plan_json.laid_out(self.as_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan written by `save`. Raises PlanError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise PlanError(f"cannot read a plan from {path}: {error}") from None
        return cls.from_dict(data, where=str(path))

    def __str__(self) -> str:
        return picture(self)

    def _cut(self) -> int:
        whole = sum(self.shapes[i].parameters for i in self.removed)
        return whole + sum(width.removed(self.shapes[i]) for i, width in self.width.items())

    def _structures(self) -> dict[tuple[str, int, int], int]:
        """Parameters of everything that goes, by (kind, layer, index)."""
        gone = {("layer", i, i): self.shapes[i].parameters for i in self.removed}
        for i, width in self.width.items():
            shape = self.shapes[i]
            gone |= {("kv_group", i, j): shape.kv_group_parameters for j in others(width.kv_groups, shape.kv_groups)}
            gone |= {("channel", i, j): shape.channel_parameters for j in others(width.channels, shape.channels)}
        return gone

    def _steps(self) -> tuple[Step, ...]:
        """One at least, also of a plan that was made by hand."""
        return self.steps or (Step(self.method),)

    def _with_last(self, **records: Record) -> Self:
        *before, last = self._steps()
        return replace(self, steps=(*before, replace(last, **plan_json.finite(records))))


def _texts(record: object) -> Iterator[str]:
    """Every hash of a text in `record`, at any depth."""
    if isinstance(record, dict):
        found = record.get("text_sha256")
        yield from found.split(BETWEEN) if isinstance(found, str) else ()
    for inner in record.values() if isinstance(record, dict) else record if isinstance(record, list) else ():
        yield from _texts(inner)
