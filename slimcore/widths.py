"""What goes from inside layers under a budget: steps in the order in which they go. No torch here.

A step is one KV group or one channel, or with `multiple_of` as many as keep the widths even. The budget takes the
beginning of the list that comes nearest to it. So the achieved figure lies within one step of the asked one, and a
larger ratio keeps a subset of what a smaller one keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from slimcore.budget import Budget
from slimcore.errors import BudgetError
from slimcore.plan import Width, others
from slimcore.scores import Means, Scores

KV_GROUP, CHANNEL = "KV group", "channel"


@dataclass(frozen=True)
class _Step:
    """Structures of one kind and layer that go together."""

    key: float  # low goes first
    kind: str
    layer: int
    indices: tuple[int, ...]
    parameters: int  # less the bias that comes with the first of its kind


@dataclass(frozen=True)
class _Row:
    """The structures of one kind in one layer."""

    kind: str
    layer: int
    values: tuple[float, ...]
    together: int  # so many go in one step
    each: int  # parameters of one structure
    bias: int  # parameters that the layer gains when the first goes

    @property
    def order(self) -> list[int]:
        """Indices, least important first; equal ones in their order."""
        return sorted(range(len(self.values)), key=self.values.__getitem__)

    def steps(self, *, adaptive: bool) -> Iterator[_Step]:
        """As many as leave one step's structures; `adaptive` steps are keyed by score, others by the share gone."""
        order, start, bias = self.order, 0, self.bias
        odd = len(order) % self.together
        while start + (size := odd or self.together) <= len(order) - self.together:
            indices = tuple(order[start : start + size])
            key = sum(self.values[i] for i in indices) / size if adaptive else (start + size) / len(order)
            # What makes a width even comes first, whatever it scores.
            yield _Step(-math.inf if odd else key, self.kind, self.layer, indices, size * self.each - bias)
            start, odd, bias = start + size, 0, 0


def cut_to(
    scores: Scores,
    budget: Budget,
    target: float,
    candidates: Iterable[int],
    multiple_of: int,
    allocation: str,
    attention_ratio: float | None,
) -> dict[int, Width]:
    """What stays in each of the layers `candidates` that loses something, `target` parameters being removed."""
    rows = _rows(scores, candidates, multiple_of)
    adaptive = allocation.startswith("AL")
    # Channels before KV groups at equal keys: they come nearer to what is asked.
    steps = [
        step
        for kind in (CHANNEL, KV_GROUP)
        for row in rows
        if row.kind == kind
        for step in row.steps(adaptive=adaptive)
    ]
    steps.sort(key=lambda step: step.key)
    if not allocation.endswith("MM"):
        return _widths(scores, _nearest(steps, target, budget, multiple_of))
    attention, mlp = (sum(len(r.values) * r.each for r in rows if r.kind == kind) for kind in (KV_GROUP, CHANNEL))
    share = attention_ratio if attention_ratio is not None else target / max(1, attention + mlp)
    if not 0 <= share <= 1:
        raise BudgetError(f"attention_ratio must lie between 0 and 1 (got {share:g})")
    goals = {KV_GROUP: share * attention, CHANNEL: target - share * attention}
    taken = [_nearest([s for s in steps if s.kind == k], goal, budget, multiple_of) for k, goal in goals.items()]
    return _widths(scores, [step for part in taken for step in part])


def cut_locally(scores: Scores, budget: Budget, candidates: Iterable[int], multiple_of: int) -> dict[int, Width]:
    """LLM-Pruner's own counts: of C channels C - int(C (1 - r)) go, of attention's as many whole groups as fit."""
    assert budget.local_ratio is not None
    kept_share, steps = 1 - budget.local_ratio, list[_Step]()
    for row in _rows(scores, candidates, multiple_of):
        count = len(row.values)
        stay = int(count * kept_share)
        if row.kind == KV_GROUP:
            size = scores.shapes[row.layer].head_dim
            stay = count - (count * size - int(count * size * kept_share)) // size
        # The nearest multiple that the layer has.
        stay = min(round(stay / row.together), count // row.together) * row.together
        if stay < 1:
            raise BudgetError(f"{budget.words} would leave no {row.kind} in layer {row.layer}: ask for less")
        if stay < count:
            steps.append(_Step(0, row.kind, row.layer, tuple(row.order[: count - stay]), 0))
    return _widths(scores, steps)


def _rows(scores: Scores, candidates: Iterable[int], multiple_of: int) -> list[_Row]:
    rows = []
    for layer in candidates:
        shape, widths = scores.shapes[layer], scores.widths[layer]
        if not widths.channels:
            raise BudgetError(
                f"layer {layer} may be cut but was not scored: score with the same protect= as you select with"
            )
        # Every projection of attention is a multiple where that of the keys is.
        heads = multiple_of // math.gcd(multiple_of, shape.head_dim)
        gains_o, gains_down = (
            shape.hidden if scores.means and not has else 0 for has in (shape.o_bias, shape.down_bias)
        )
        rows += [
            _Row(KV_GROUP, layer, widths.kv_groups, heads, shape.kv_group_parameters, gains_o),
            _Row(CHANNEL, layer, widths.channels, multiple_of, shape.channel_parameters, gains_down),
        ]
    for row in rows:
        if row.together > len(row.values):
            size = scores.shapes[row.layer].head_dim
            has = f"{len(row.values)} " + (f"KV heads of {size}" if row.kind == KV_GROUP else "channels")
            raise BudgetError(
                f"multiple_of={multiple_of} cannot be met: layer {row.layer} has {has}; ask for a smaller multiple"
            )
    return rows


def _nearest(steps: list[_Step], target: float, budget: Budget, multiple_of: int) -> list[_Step]:
    """The beginning of `steps` whose parameters come nearest to `target`; steps that must be are in it."""
    sums = list(accumulate((step.parameters for step in steps), initial=0))
    forced = sum(step.key == -math.inf for step in steps)
    slack = max((step.parameters for step in steps), default=0) / 2
    if target > sums[-1] + slack:
        raise BudgetError(
            f"{budget.words} asks to remove {target:,.0f} parameters, but at most {sums[-1]:,} may go: one KV group"
            " and one channel stay in each layer, and protected layers stay whole; ask for less, or protect fewer"
        )
    if sums[forced] > target + slack:
        raise BudgetError(
            f"multiple_of={multiple_of} alone removes {sums[forced]:,} parameters to make the widths even,"
            f" {budget.words} asks for {target:,.0f}: ask for more, or for a smaller multiple"
        )
    nearest = min(range(len(sums)), key=lambda n: abs(sums[n] - target))
    return steps[: max(nearest, forced)]


def _widths(scores: Scores, steps: Iterable[_Step]) -> dict[int, Width]:
    """What stays in each layer that loses something."""
    gone: dict[int, dict[str, set[int]]] = {}
    for step in steps:
        gone.setdefault(step.layer, {KV_GROUP: set(), CHANNEL: set()})[step.kind] |= set(step.indices)
    widths = {}
    for layer, of_kind in sorted(gone.items()):
        shape, groups, channels = scores.shapes[layer], of_kind[KV_GROUP], of_kind[CHANNEL]
        means = scores.means[layer] if scores.means else Means((), ())
        widths[layer] = Width(
            kv_groups=tuple(others(groups, shape.kv_groups)),
            channels=tuple(others(channels, shape.channels)),
            o_means=tuple(m for i, m in enumerate(means.o) if i // shape.group_inputs in groups),
            down_means=tuple(m for i, m in enumerate(means.down) if i in channels),
        )
    return widths
