"""select(): which structures a budget takes. Arithmetic on scores; no torch here.

Inside layers, everything that may go is a list of steps in the order in which it goes, and the budget takes the
beginning of the list that comes nearest to it. So the achieved figure lies within one step of the asked one, and a
larger ratio keeps a subset of what a smaller one keeps. A step is one KV group or one channel, or with `multiple_of`
as many as keep the widths even.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from slimcore.budget import Budget
from slimcore.errors import BudgetError, UnknownNameError
from slimcore.plan import Plan, Width
from slimcore.scores import ALLOCATIONS, LayerShape, Means, Scores, checked_protection

KV_GROUPS, CHANNELS = "kv_groups", "channels"


def select(
    scores: Scores,
    *,
    ratio: float | None = None,
    params: int | None = None,
    bytes: int | None = None,  # noqa: A002 - the name of the unit
    layers: int | None = None,
    local_ratio: float | None = None,
    multiple_of: int = 1,
    protect: tuple[int, int] | None = None,
    allocation: str | None = None,
    attention_ratio: float | None = None,
) -> Plan:
    """Choose what goes: the lowest scores, one-shot, until the budget is met as nearly as whole structures allow.

    `ratio`: share of block parameters removed; `params`, `bytes`: parameters or weight bytes left; `layers`: layers
    removed; `local_ratio`: share of each unprotected layer's KV groups and channels removed (LLM-Pruner's ratio).
    For scores of what is inside layers, further: `multiple_of` rounds the kept channels, and the kept heads where one
    is no multiple already; `allocation` is one of FLAP's (None: the method's own), and for its M `attention_ratio` is
    the share of attention that goes (None: as of the MLP).
    `protect`: so many first and last layers are never cut; None is as scored, (0, 0) switches it off.
    Raises BudgetError where the budget is malformed or out of reach, UnknownNameError for an unknown allocation.
    """
    budget = Budget(ratio=ratio, params=params, bytes=bytes, layers=layers, local_ratio=local_ratio)
    first, last = protect = checked_protection(scores.protect if protect is None else protect)
    if multiple_of < 1:
        raise BudgetError(f"multiple_of must be 1 or more (got {multiple_of})")
    if scores.values:
        if local_ratio is not None or multiple_of != 1:
            raise BudgetError(f"{scores.method} removes whole layers: local_ratio and multiple_of are for widths")
        keep, width = _layers(scores, budget, protect), dict[int, Width]()
    else:
        if layers is not None:
            raise BudgetError(f"{scores.method} cuts inside layers: give ratio, params, bytes or local_ratio")
        share = scores.allocation if allocation is None else allocation
        if share not in ALLOCATIONS:
            raise UnknownNameError("allocation", share, ALLOCATIONS)
        inside = _Inside(scores, multiple_of, range(first, len(scores.shapes) - last))
        gone = inside.local(budget) if local_ratio is not None else inside.prefix(budget, share, attention_ratio)
        keep, width = tuple(range(len(scores.shapes))), _widths(scores, gone)
    return Plan(
        method=scores.method,
        shapes=scores.shapes,
        parameters_before=scores.total_parameters,
        keep=keep,
        width=width,
        budget=budget.as_dict(),
        multiple_of=multiple_of,
        protect=protect,
        scores=scores.values,
        width_scores=scores.widths,
        provenance=scores.provenance | ({} if scores.values else {"allocation": share}),
    )


def _target(scores: Scores, budget: Budget) -> float:
    """Parameters to remove."""
    if budget.ratio is not None:
        return budget.ratio * sum(shape.parameters for shape in scores.shapes)
    left = budget.params if budget.params is not None else (budget.bytes or 0) / scores.bytes_per_parameter
    if left > scores.total_parameters:
        has = scores.total_parameters * (1 if budget.params is not None else scores.bytes_per_parameter)
        raise BudgetError(f"{budget.words} is more than the model has ({has:,.0f}): ask for less")
    return scores.total_parameters - left


def _layers(scores: Scores, budget: Budget, protect: tuple[int, int]) -> tuple[int, ...]:
    """The layers that stay."""
    first, last = protect
    count = len(scores.values)
    candidates = [i for i in scores.order if first <= i < count - last]
    # One layer at least stays, whatever is protected.
    reach = min(len(candidates), count - 1)
    number = _layers_to_remove(scores, budget, candidates[:reach])
    if number > reach:
        raise BudgetError(
            f"{budget.words} asks for {number} of {count} layers, but at most {reach} may be cut"
            f" (the first {first} and last {last} are protected, and one always stays):"
            " ask for less, or protect fewer layers"
        )
    return tuple(sorted(set(range(count)) - set(candidates[:number])))


def _layers_to_remove(scores: Scores, budget: Budget, candidates: Sequence[int]) -> int:
    """How many candidates, from the front, come nearest to the budget."""
    if budget.layers is not None:
        return budget.layers
    target = _target(scores, budget)
    sizes = [shape.parameters for shape in scores.shapes]
    cuts = list(accumulate((sizes[layer] for layer in candidates), initial=0))
    nearest = _nearest(cuts, target)
    # Out of reach only if one more whole layer would have come nearer.
    short = target - cuts[-1]
    return nearest if short <= max(sizes) / 2 else math.ceil(short / max(sizes)) + len(candidates)


def _nearest(sums: Sequence[float], target: float) -> int:
    return min(range(len(sums)), key=lambda n: abs(sums[n] - target))


@dataclass(frozen=True)
class _Step:
    """Structures of one kind and layer that go together."""

    key: float  # low goes first
    kind: str
    layer: int
    indices: tuple[int, ...]
    parameters: int  # less the bias that comes with the first of its kind


class _Inside:
    """The steps of scores of what is inside layers."""

    def __init__(self, scores: Scores, multiple_of: int, candidates: Iterable[int]) -> None:
        self.scores = scores
        self.multiple_of = multiple_of
        self.candidates = list(candidates)
        for layer in self.candidates:
            if not scores.widths[layer].channels:
                raise BudgetError(
                    f"layer {layer} may be cut but was not scored: score with the same protect= as you select with"
                )
            for kind in (KV_GROUPS, CHANNELS):
                self._check_multiple(layer, kind)

    def prefix(self, budget: Budget, allocation: str, attention_ratio: float | None) -> list[_Step]:
        """The steps that come nearest to the budget, from the front."""
        target = _target(self.scores, budget)
        adaptive = allocation.startswith("AL")
        groups, channels = list(self._steps(KV_GROUPS, adaptive=adaptive)), list(self._steps(CHANNELS, adaptive=adaptive))
        if not allocation.endswith("MM"):
            # At equal keys channels first: they come nearer to what is asked.
            return self._take(sorted(channels + groups, key=lambda step: step.key), target, budget)
        sizes = [(self._size(KV_GROUPS, i), self._size(CHANNELS, i)) for i in self.candidates]
        attention, mlp = sum(a for a, _ in sizes), sum(m for _, m in sizes)
        share = target / (attention + mlp) if attention_ratio is None else attention_ratio
        if not 0 <= share <= 1:
            raise BudgetError(f"attention_ratio must lie between 0 and 1 (got {share:g})")
        taken = self._take(sorted(groups, key=lambda step: step.key), share * attention, budget)
        return taken + self._take(sorted(channels, key=lambda step: step.key), target - share * attention, budget)

    def local(self, budget: Budget) -> list[_Step]:
        """LLM-Pruner's own counts: of C channels C - int(C (1 - r)) go, of attention's as many whole groups as fit."""
        assert budget.local_ratio is not None
        kept_share, taken = 1 - budget.local_ratio, list[_Step]()
        for layer in self.candidates:
            shape = self.scores.shapes[layer]
            width = shape.kv_groups * shape.head_dim
            stay = {
                KV_GROUPS: shape.kv_groups - (width - int(width * kept_share)) // shape.head_dim,
                CHANNELS: int(shape.channels * kept_share),
            }
            for kind, number in stay.items():
                order, step = self._order(layer, kind), self._step_size(layer, kind)
                # The nearest multiple that the layer has.
                rounded = min(round(number / step), len(order) // step) * step
                if rounded < 1:
                    raise BudgetError(f"{budget.words} would leave no {_WORDS[kind]} in layer {layer}: ask for less")
                gone = order[: len(order) - rounded]
                if gone:
                    taken.append(_Step(0.0, kind, layer, tuple(gone), 0))
        return taken

    def _take(self, steps: list[_Step], target: float, budget: Budget) -> list[_Step]:
        sums = list(accumulate((step.parameters for step in steps), initial=0))
        forced = sums[sum(step.key == -math.inf for step in steps)]
        largest = max((step.parameters for step in steps), default=0)
        if target > sums[-1] + largest / 2:
            raise BudgetError(
                f"{budget.words} asks to remove {target:,.0f} parameters, but at most {sums[-1]:,} may go: one KV group"
                " and one channel stay in each layer, and protected layers stay whole; ask for less, or protect fewer"
            )
        if forced > target + largest / 2:
            raise BudgetError(
                f"multiple_of={self.multiple_of} alone removes {forced:,} parameters to make the widths even,"
                f" {budget.words} asks for {target:,.0f}: ask for more, or for a smaller multiple"
            )
        return steps[: max(_nearest(sums, target), sum(step.key == -math.inf for step in steps))]

    def _steps(self, kind: str, *, adaptive: bool) -> Iterator[_Step]:
        """All steps of one kind, layer by layer, each layer's in the order in which they go."""
        for layer in self.candidates:
            shape = self.scores.shapes[layer]
            values, order, size = self._values(layer, kind), self._order(layer, kind), self._step_size(layer, kind)
            each = shape.kv_group_parameters if kind == KV_GROUPS else shape.channel_parameters
            bias = shape.hidden if self._gains_bias(shape, kind) else 0
            start, odd = 0, len(order) % size
            while start + (taking := odd or size) <= len(order) - size:
                indices = tuple(order[start : start + taking])
                key = sum(values[i] for i in indices) / taking if adaptive else (start + taking) / len(order)
                # What makes a width even comes first, whatever it scores.
                yield _Step(-math.inf if odd else key, kind, layer, indices, taking * each - bias)
                start, odd, bias = start + taking, 0, 0

    def _values(self, layer: int, kind: str) -> tuple[float, ...]:
        widths = self.scores.widths[layer]
        return widths.kv_groups if kind == KV_GROUPS else widths.channels

    def _order(self, layer: int, kind: str) -> list[int]:
        """Indices, least important first."""
        values = self._values(layer, kind)
        return sorted(range(len(values)), key=values.__getitem__)

    def _step_size(self, layer: int, kind: str) -> int:
        if kind == CHANNELS:
            return self.multiple_of
        # Every projection's width is a multiple where that of the keys is.
        return self.multiple_of // math.gcd(self.multiple_of, self.scores.shapes[layer].head_dim)

    def _size(self, kind: str, layer: int) -> int:
        shape = self.scores.shapes[layer]
        return (
            shape.kv_groups * shape.kv_group_parameters
            if kind == KV_GROUPS
            else shape.channels * shape.channel_parameters
        )

    def _gains_bias(self, shape: LayerShape, kind: str) -> bool:
        return bool(self.scores.means) and not (shape.o_bias if kind == KV_GROUPS else shape.down_bias)

    def _check_multiple(self, layer: int, kind: str) -> None:
        has, step = len(self._values(layer, kind)), self._step_size(layer, kind)
        if step > has:
            head_dim = self.scores.shapes[layer].head_dim
            unit = "channels" if kind == CHANNELS else f"KV heads of {head_dim}"
            raise BudgetError(
                f"multiple_of={self.multiple_of} cannot be met: layer {layer} has {has} {unit}; ask for a smaller multiple"
            )


_WORDS = {KV_GROUPS: "KV group", CHANNELS: "channel"}


def _widths(scores: Scores, steps: Iterable[_Step]) -> dict[int, Width]:
    """What stays in each layer that loses something."""
    gone: dict[int, dict[str, set[int]]] = {}
    for step in steps:
        gone.setdefault(step.layer, {KV_GROUPS: set(), CHANNELS: set()})[step.kind] |= set(step.indices)
    widths = {}
    for layer in sorted(gone):
        shape, groups, channels = scores.shapes[layer], gone[layer][KV_GROUPS], gone[layer][CHANNELS]
        means = scores.means[layer] if scores.means else Means((), ())
        widths[layer] = Width(
            kv_groups=tuple(i for i in range(shape.kv_groups) if i not in groups),
            channels=tuple(i for i in range(shape.channels) if i not in channels),
            o_means=tuple(m for i, m in enumerate(means.o) if i // shape.group_inputs in groups),
            down_means=tuple(m for i, m in enumerate(means.down) if i in channels),
        )
    return widths
