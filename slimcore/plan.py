"""Plan: what is kept, as data. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from slimcore.errors import PlanError
from slimcore.files import write_text
from slimcore.scores import LayerShape, Widths

SCHEMA = "slimcore.plan/2"
HEALING_WINDOWS = (320, 128)  # of calibration, which the built-in text has, where nothing else is asked for
BETWEEN = " + "  # the names of several texts, and their hashes


@dataclass(frozen=True)
class Width:
    """What stays inside one layer, and the mean inputs of what goes, where its loss is made up for by a bias."""

    kv_groups: tuple[int, ...]  # kept, ascending
    channels: tuple[int, ...]  # kept, ascending
    o_means: tuple[float, ...] = ()  # one an input of o_proj that goes, ascending; empty: no bias
    down_means: tuple[float, ...] = ()  # one an input of down_proj that goes

    def removed(self, shape: LayerShape) -> int:
        """Parameters that a layer of `shape` loses, less the biases it gains."""
        gained = (bool(self.o_means) and not shape.o_bias) + (bool(self.down_means) and not shape.down_bias)
        groups, channels = shape.kv_groups - len(self.kv_groups), shape.channels - len(self.channels)
        return groups * shape.kv_group_parameters + channels * shape.channel_parameters - gained * shape.hidden

    def after(self, shape: LayerShape) -> LayerShape:
        """The shape that is left of a layer of `shape`."""
        return replace(
            shape,
            parameters=shape.parameters - self.removed(shape),
            heads=shape.heads // shape.kv_groups * len(self.kv_groups),
            kv_groups=len(self.kv_groups),
            channels=len(self.channels),
            o_bias=shape.o_bias or bool(self.o_means),
            down_bias=shape.down_bias or bool(self.down_means),
        )


@dataclass(frozen=True)
class Plan:
    """What is kept, with provenance: printed, compared, stored, replayed and composed."""

    method: str
    shapes: tuple[LayerShape, ...]  # of the model it is for, one a layer
    parameters_before: int
    keep: tuple[int, ...]  # kept layer indices, ascending
    width: dict[int, Width] = field(default_factory=dict)  # of kept layers that lose something inside
    budget: dict[str, float] = field(default_factory=dict)
    multiple_of: int = 1
    protect: tuple[int, int] = (0, 0)
    scores: tuple[float, ...] = ()
    width_scores: tuple[Widths, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_indices("keep", self.keep, len(self.shapes))
        for layer, width in self.width.items():
            if layer not in self.keep:
                raise PlanError(f"width names layer {layer}, which is not kept")
            shape = self.shapes[layer]
            _check_indices(f"layer {layer}: kv_groups", width.kv_groups, shape.kv_groups)
            _check_indices(f"layer {layer}: channels", width.channels, shape.channels)
            inputs = (shape.kv_groups - len(width.kv_groups)) * shape.group_inputs
            for name, means, expected in (
                ("o_means", width.o_means, inputs),
                ("down_means", width.down_means, shape.channels - len(width.channels)),
            ):
                if means and len(means) != expected:
                    raise PlanError(f"layer {layer}: {name} must have one value for each of {expected} inputs that go")

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
        """Share of block parameters removed: what was achieved, where `budget` is what was asked."""
        return self._cut() / sum(shape.parameters for shape in self.shapes)

    @property
    def texts(self) -> set[str]:
        """Hashes of the texts that it was found, and its model healed and recovered, on."""
        steps = [self.provenance, *self.provenance.get("steps", [])]
        kinds = [(step, step.get("healed", {}), step.get("recovered", {})) for step in steps]
        found = [on.get("text_sha256") for kind in kinds for on in kind]
        return {digest for hashes in found if hashes for digest in str(hashes).split(BETWEEN)}

    def unhealed(self) -> Self:
        """The same cut, of a model whose weights are as they were."""
        return replace(self, provenance={k: v for k, v in self.provenance.items() if k not in ("healed", "recovered")})

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
            width[layer] = _composed(self.inside(layer), after, self.shapes[layer], second.shapes[i])
        steps = [{"method": p.method, "budget": p.budget} | p.provenance for p in (self, second)]
        return Plan(
            f"{self.method}, then {second.method}", self.shapes, self.parameters_before, keep, width,
            multiple_of=second.multiple_of, provenance={"steps": steps},
        )  # fmt: skip

    def compare(self, other: Plan) -> str:
        """How many parameters both cut, and each alone, in one line. Raises PlanError on plans for different models."""
        if (self.shapes, self.parameters_before) != (other.shapes, other.parameters_before):
            raise PlanError(f"{self.method} and {other.method} are plans for different models: nothing to compare")
        mine, yours = self._structures(), other._structures()
        both, first, second = (
            sum(self._size(kind, layer) for kind, layer, _ in cut) for cut in (mine & yours, mine - yours, yours - mine)
        )
        return f"parameters cut by both {both:,}; by {self.method} alone {first:,}; by {other.method} alone {second:,}"

    def without_width_scores(self) -> Plan:
        """The same cut in a fraction of the space."""
        return replace(self, width_scores=())

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON types, with what it achieves."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        plain: dict[str, Any] = _plain(own | {"parameters": self.parameters, "ratio": self.ratio})
        return {"schema": SCHEMA} | plain

    @classmethod
    def from_dict(cls, data: object, where: str = "plan") -> Self:
        """Rebuild a plan from `as_dict`; `where` names its place in errors. Raises PlanError."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise PlanError(f"{where}: not a plan of schema {SCHEMA!r} (found {found!r})")
        values = {
            k: v if k == "provenance" else _frozen(v)
            for k, v in data.items()
            if k not in ("schema", "parameters", "ratio")
        }
        try:
            values["shapes"] = tuple(LayerShape(**shape) for shape in values["shapes"])
            values["width"] = {int(layer): Width(**width) for layer, width in values["width"].items()}
            values["width_scores"] = tuple(Widths(**widths) for widths in values.get("width_scores", ()))
            plan = cls(**values)
        except KeyError as error:
            raise PlanError(f"{where}: {error} is missing") from None
        except (TypeError, ValueError, AttributeError, PlanError) as error:
            raise PlanError(f"{where}: {error}") from None
        if plan.parameters != data.get("parameters"):
            raise PlanError(f"{where}: says {data.get('parameters')} parameters, what it keeps has {plan.parameters}")
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_text(Path(path), _json(self.as_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan written by `save`. Raises PlanError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read a plan from {path}: {error}") from None
        return cls.from_dict(data, where=str(path))

    def __str__(self) -> str:
        layers = f"{len(self.removed)} of {self.num_layers} layers go, " if self.removed else ""
        lines = [
            f"{self.method}: {layers}{self.ratio:.1%} of block parameters",
            f"  parameters  {self.parameters_before:,} -> {self.parameters:,}",
        ]
        if self.removed:
            strip = "".join("#" if i in self.keep else "." for i in range(self.num_layers))
            lines += [
                f"  layers      [{strip}]  # kept, . removed",
                f"  removed     {', '.join(map(str, self.removed))}",
            ]
        lines += self._picture_inside() if self.width else []
        if healed := self.provenance.get("healed"):
            lines += _healed(healed)
        return "\n".join(lines)

    def _picture_inside(self) -> list[str]:
        """What goes inside the layers, and a sentence where no KV group could go."""
        lines, groups_go = [], False
        for name, label in (("kv_groups", "KV groups"), ("channels", "channels")):
            before = {i: getattr(self.shapes[i], name) for i in self.keep}
            after = {i: len(getattr(self.inside(i), name)) for i in self.keep}
            gone, total = sum(before.values()) - sum(after.values()), sum(before.values())
            groups_go = groups_go or (name == "kv_groups" and gone > 0)
            strip = "".join(_digit(after[i], before[i]) if i in after else "." for i in range(self.num_layers))
            lines.append(f"  {label:<10}  [{strip}]  {gone:,} of {total:,} go ({gone / total:.1%})")
        lines.append("              # all of a layer kept, 9 nine tenths, 8 eight tenths, ...")
        if not groups_go:
            most = max(self.shapes[i].kv_groups for i in self.keep)
            lines.append(f"  no KV group goes (one is {1 / most:.0%} of a layer's): the budget is met with channels")
        if any(w.o_means or w.down_means for w in self.width.values()):
            lines.append("  biases on the output projections make up for the mean of what goes")
        if self.multiple_of > 1:
            lines.append(f"  widths of the layers that may be cut are multiples of {self.multiple_of}")
        return lines

    def _cut(self) -> int:
        whole = sum(self.shapes[i].parameters for i in self.removed)
        return whole + sum(width.removed(self.shapes[i]) for i, width in self.width.items())

    def _structures(self) -> set[tuple[str, int, int]]:
        """Everything that goes, as (kind, layer, index)."""
        gone = {("layer", i, i) for i in self.removed}
        for i, width in self.width.items():
            gone |= {("kv_group", i, j) for j in others(width.kv_groups, self.shapes[i].kv_groups)}
            gone |= {("channel", i, j) for j in others(width.channels, self.shapes[i].channels)}
        return gone

    def _size(self, kind: str, layer: int) -> int:
        shape = self.shapes[layer]
        sizes = {
            "layer": shape.parameters,
            "kv_group": shape.kv_group_parameters,
            "channel": shape.channel_parameters,
        }
        return sizes[kind]


def _healed(healed: dict[str, Any]) -> list[str]:
    """Perplexity of each kind of text before and after, on windows held out, and how much of the change is kept."""
    kept = healed["kept"]
    lines = [
        f"  healed      perplexity on {kind} {before:.4g} -> {after:.4g}"
        for kind, (before, after) in healed["perplexity"].items()
    ]
    if kept == 0:
        lines[-1] += ": no, some text would get worse; a gap is too wide, take less or other layers"
    elif kept < 1:
        lines.append(f"              with {kept:g} of each change: with more, some text would get worse")
    return lines


def _check_indices(what: str, kept: tuple[int, ...], count: int) -> None:
    indices = list(kept)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
        raise PlanError(f"{what} must be ascending indices within 0..{count - 1}, one at least (got {indices[:20]})")


def owned(structures: Iterable[int], each: int) -> list[int]:
    """Indices of the rows, or columns, that `structures` own, `each` apiece."""
    return [structure * each + i for structure in structures for i in range(each)]


def others(kept: Iterable[int], count: int) -> list[int]:
    """Indices below `count` that are not in `kept`, ascending."""
    return sorted(set(range(count)) - set(kept))


def _composed(first: Width, second: Width, before: LayerShape, between: LayerShape) -> Width:
    """`second`, for what `first` leaves of `before`, in the numbering of `before`."""
    each = before.group_inputs
    inputs = owned(first.kv_groups, each)  # that `first` leaves of o_proj's
    return Width(
        kv_groups=tuple(first.kv_groups[j] for j in second.kv_groups),
        channels=tuple(first.channels[j] for j in second.channels),
        o_means=_composed_means(
            (first.o_means, owned(others(first.kv_groups, before.kv_groups), each)),
            (second.o_means, [inputs[i] for i in owned(others(second.kv_groups, between.kv_groups), each)]),
        ),
        down_means=_composed_means(
            (first.down_means, others(first.channels, before.channels)),
            (second.down_means, [first.channels[j] for j in others(second.channels, between.channels)]),
        ),
    )


def _composed_means(*steps: tuple[tuple[float, ...], list[int]]) -> tuple[float, ...]:
    """Means of all inputs that go, ascending; zero, which adds nothing, for those of a step without means."""
    if not any(means for means, _ in steps):
        return ()
    found: dict[int, float] = {}
    for means, indices in steps:
        found |= zip(indices, means or [0.0] * len(indices), strict=True)
    return tuple(found[index] for index in sorted(found))


def _digit(kept: int, total: int) -> str:
    return "#" if kept == total else str(10 * kept // total)


def _plain(value: Any) -> Any:
    """As JSON types."""
    if isinstance(value, LayerShape | Width | Widths):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    """Lists of JSON as tuples, at every depth."""
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _json(value: Any, indent: str = "") -> str:
    """JSON with objects laid out and lists of numbers on one line, or each index would be a line of its own."""
    if not value or not (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + _json(v, inner) for v in value) + f"\n{indent}]"
    return "{\n" + ",\n".join(f"{inner}{json.dumps(k)}: {_json(v, inner)}" for k, v in value.items()) + f"\n{indent}}}"
