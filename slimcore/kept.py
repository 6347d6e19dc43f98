"""Width: what stays inside one layer, as data, and arithmetic on indices. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from slimcore.errors import PlanError
from slimcore.scores import LayerShape
from slimcore.validation import Strict, check_finite, check_indices

MOST = 3.4028234e38  # of a mean: what float32 holds


@dataclass(frozen=True)
class Width(Strict):
    """What stays inside one layer, and the mean inputs of what goes, where its loss is made up for by a bias."""

    kv_groups: tuple[int, ...]  # kept, ascending
    channels: tuple[int, ...]  # kept, ascending
    o_means: tuple[float, ...] = ()  # one an input of o_proj that goes, ascending; empty: no bias
    down_means: tuple[float, ...] = ()  # one an input of down_proj that goes

    def check(self, where: str, shape: LayerShape) -> None:
        """Raise PlanError unless this can be what stays of a layer of `shape`; `where` names it in the message."""
        check_indices(f"{where}: kv_groups", self.kv_groups, shape.kv_groups)
        check_indices(f"{where}: channels", self.channels, shape.channels)
        for name, means, inputs in (
            ("o_means", self.o_means, (shape.kv_groups - len(self.kv_groups)) * shape.group_inputs),
            ("down_means", self.down_means, shape.channels - len(self.channels)),
        ):
            check_finite(f"{where}: {name}", means, MOST)
            if means and len(means) != inputs:
                raise PlanError(f"{where}: {name} must have one value for each of {inputs} inputs that go")

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

    def then(self, second: Width, before: LayerShape, between: LayerShape) -> Width:
        """`second`, for the `between` that this leaves of `before`, in the numbering of `before`."""
        each = before.group_inputs
        inputs = owned(self.kv_groups, each)  # that this leaves of o_proj's
        return Width(
            kv_groups=tuple(self.kv_groups[j] for j in second.kv_groups),
            channels=tuple(self.channels[j] for j in second.channels),
            o_means=_joined(
                (self.o_means, owned(others(self.kv_groups, before.kv_groups), each)),
                (second.o_means, [inputs[i] for i in owned(others(second.kv_groups, between.kv_groups), each)]),
            ),
            down_means=_joined(
                (self.down_means, others(self.channels, before.channels)),
                (second.down_means, [self.channels[j] for j in others(second.channels, between.channels)]),
            ),
        )


def owned(structures: Iterable[int], each: int) -> list[int]:
    """Indices of the rows, or columns, that `structures` own, `each` apiece."""
    return [structure * each + i for structure in structures for i in range(each)]


def others(kept: Iterable[int], count: int) -> list[int]:
    """Indices below `count` that are not in `kept`, ascending."""
    return sorted(set(range(count)) - set(kept))


def _joined(*steps: tuple[tuple[float, ...], list[int]]) -> tuple[float, ...]:
    """Means of all inputs that go, ascending; zero, which adds nothing, for those of a step without means."""
    if not any(means for means, _ in steps):
        return ()
    found: dict[int, float] = {}
    for means, indices in steps:
        found |= zip(indices, means or [0.0] * len(indices), strict=True)
    return tuple(found[index] for index in sorted(found))
