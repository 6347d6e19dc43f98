"""What goes from inside layers under a budget: steps in the order in which they go. No torch here.

A step is one KV group or one channel, or with `multiple_of` as many as keep the widths even. The budget takes the
beginning of the list that comes nearest to it. So the achieved figure lies within one step of the asked one, and a
larger ratio keeps a subset of what a smaller one keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from slimcore.budget import Budget
from slimcore.errors import BudgetError
from slimcore.kept import Width, others
from slimcore.scores import Means, Scores
from slimcore.target import cuts_nothing, rounded_up, to_remove

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
    standardised: bool  # the values can stand in a list with those of other rows
    together: int  # so many go in one step
    each: int  # parameters of one structure
    bias: int  # parameters that the layer gains when the first goes
    head_dim: int  # of attention's structures

    @property
    def order(self) -> list[int]:
        """Indices, least important first; equal ones in their order."""
        return sorted(range(len(self.values)), key=self.values.__getitem__)

    def steps(self, *, adaptive: bool) -> Iterator[_Step]:
        """As many as leave one step's structures; `adaptive` steps are keyed by score, others by the share gone."""
        order, start, bias = self.order, 0, self.bias
        keys = _standardised(self.values) if adaptive and not self.standardised else self.values
        odd = len(order) % self.together
        while start + (size := odd or self.together) <= len(order) - self.together:
            indices = tuple(order[start : start + size])
            key = sum(keys[i] for i in indices) / size if adaptive else (start + size) / len(order)
            # What makes a width even comes first, whatever it scores.
            yield _Step(-math.inf if odd else key, self.kind, self.layer, indices, size * self.each - bias)
            start, odd, bias = start + size, 0, 0

    def left(self, ratio: float) -> int:
        """Structures that stay where LLM-Pruner's `ratio` goes, in whole groups and multiples."""
        count, kept_share = len(self.values), 1 - ratio
        stay = int(count * kept_share)
        if self.kind == KV_GROUP:
            stay = count - (count * self.head_dim - int(count * self.head_dim * kept_share)) // self.head_dim
        # The nearest multiple that the layer has.
        return min(round(stay / self.together), count // self.together) * self.together


@dataclass(frozen=True)
class _List:
    """Steps in the order in which they go, and what they are to remove of a target: share x target + offset."""

    steps: list[_Step]
    share: float = 1
    offset: float = 0

    def taken(self, target: float, budget: Budget, multiple_of: int) -> list[_Step]:
        """The beginning whose parameters come nearest to this list's part; steps that must be are in it."""
        goal = self.share * target + self.offset
        sums = list(accumulate((step.parameters for step in self.steps), initial=0))
        forced = sum(step.key == -math.inf for step in self.steps)
        slack = max((step.parameters for step in self.steps), default=0) / 2
        if goal > sums[-1] + slack:
            raise BudgetError(
                f"{budget.words} asks to remove {goal:,.0f} parameters, but at most {sums[-1]:,} may go: one KV group"
                " and one channel stay in each layer, and protected layers stay whole; ask for less, or protect fewer"
            )
        if goal + slack < 0:
            raise BudgetError(
                f"attention_ratio alone removes {-self.offset:,.0f} parameters, {budget.words} asks for {target:,.0f}:"
                " ask for more, or for a smaller attention_ratio"
            )
        if sums[forced] > goal + slack:
            raise BudgetError(
                f"multiple_of={multiple_of} alone removes {sums[forced]:,} parameters to make the widths even,"
                f" {budget.words} asks for {goal:,.0f}: ask for more, or for a smaller multiple"
            )
        nearest = min(range(1, len(sums)), key=lambda n: abs(sums[n] - goal), default=0)
        if abs(sums[nearest] - goal) > abs(goal):
            nearest = 0
        return self.steps[: max(nearest, forced)]

    @property
    def least(self) -> float:
        """The smallest target of which anything is taken; infinite where there is none."""
        sums = accumulate(step.parameters for step in self.steps)
        half = min((total / 2 for total in sums if total > 0), default=math.inf)
        if not self.share or half == math.inf:
            return math.inf
        target = (half - self.offset) / self.share
        while self.share * target + self.offset < half:  # rounding
            target = math.nextafter(target, math.inf)
        return target


def cut_to(
    scores: Scores,
    budget: Budget,
    candidates: Iterable[int],
    multiple_of: int,
    allocation: str,
    attention_ratio: float | None,
) -> dict[int, Width]:
    """What stays in each of the layers `candidates` that loses something. Raises BudgetError where none does."""
    target = to_remove(scores, budget)
    rows = _rows(scores, candidates, multiple_of)
    adaptive = allocation.startswith("AL")
    steps = {
        kind: [step for row in rows if row.kind == kind for step in row.steps(adaptive=adaptive)]
        # Channels before KV groups at equal keys: they come nearer to what is asked.
        for kind in (CHANNEL, KV_GROUP)
    }
    if allocation.endswith("MM"):
        lists = _manual(steps, rows, attention_ratio)
    else:
        lists = [_List(sorted(steps[CHANNEL] + steps[KV_GROUP], key=lambda step: step.key))]
    taken = [step for part in lists for step in part.taken(target, budget, multiple_of)]
    if not taken:
        first = min(lists, key=lambda part: part.least)
        if first.least == math.inf:
            raise BudgetError(
                f"{budget.words} cuts nothing, nor would another: one KV group and one channel stay in each layer;"
                " protect fewer layers, or choose another allocation"
            )
        step = first.steps[0]
        raise cuts_nothing(scores, budget, step.kind, step.parameters, first.least)
    return _widths(scores, taken)


def _manual(steps: dict[str, list[_Step]], rows: list[_Row], attention_ratio: float | None) -> list[_List]:
    """One list for attention and one for the MLP; None takes the same share of both."""
    attention, mlp = (sum(len(r.values) * r.each for r in rows if r.kind == kind) for kind in (KV_GROUP, CHANNEL))
    if attention_ratio is None:
        part = attention / max(1, attention + mlp)
        shares = {KV_GROUP: (part, 0.0), CHANNEL: (1 - part, 0.0)}
    elif 0 <= attention_ratio <= 1:
        shares = {KV_GROUP: (0.0, attention_ratio * attention), CHANNEL: (1.0, -attention_ratio * attention)}
    else:
        raise BudgetError(f"attention_ratio must lie between 0 and 1 (got {attention_ratio:g})")
    return [_List(sorted(steps[kind], key=lambda step: step.key), *share) for kind, share in shares.items()]


def cut_locally(scores: Scores, budget: Budget, candidates: Iterable[int], multiple_of: int) -> dict[int, Width]:
    """LLM-Pruner's own counts: of C channels C - int(C (1 - r)) go, of attention's as many whole groups as fit."""
    assert budget.local_ratio is not None
    rows, steps = _rows(scores, candidates, multiple_of), list[_Step]()
    for row in rows:
        stay = row.left(budget.local_ratio)
        if stay < 1:
            raise BudgetError(f"{budget.words} would leave no {row.kind} in layer {row.layer}: ask for less")
        if stay < len(row.values):
            steps.append(_Step(0, row.kind, row.layer, tuple(row.order[: len(row.values) - stay]), 0))
    if not steps:
        raise BudgetError(f"{budget.words} cuts nothing: {_least_locally(rows, budget.local_ratio, multiple_of)}")
    return _widths(scores, steps)


def _least_locally(rows: list[_Row], low: float, multiple_of: int) -> str:
    """What to ask for instead of the local ratio `low`, by halving the interval between it and 1."""
    high = 1.0
    for _ in range(60):
        middle = (low + high) / 2
        cuts = any(row.left(middle) < len(row.values) for row in rows)
        low, high = (low, middle) if cuts else (middle, high)
    if any(row.left(high) < 1 for row in rows):
        return f"no layer has a smaller width that is a multiple of {multiple_of}; ask for a smaller multiple"
    why = f"widths are to be multiples of {multiple_of}; " if multiple_of > 1 else ""
    return f"{why}ask for at least {rounded_up(Fraction(high)):f}"


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
        for kind, values, together, each, gains in (
            (KV_GROUP, widths.kv_groups, heads, shape.kv_group_parameters, gains_o),
            (CHANNEL, widths.channels, multiple_of, shape.channel_parameters, gains_down),
        ):
            if together > len(values):
                has = f"{len(values)} " + (f"KV heads of {shape.head_dim}" if kind == KV_GROUP else "channels")
                raise BudgetError(
                    f"multiple_of={multiple_of} cannot be met: layer {layer} has {has}; ask for a smaller multiple"
                )
            rows.append(_Row(kind, layer, values, scores.standardised, together, each, gains, shape.head_dim))
    return rows


def _standardised(values: tuple[float, ...]) -> tuple[float, ...]:
    """Each less their mean, by their unbiased deviation, as FLAP has it: methods' units differ by layer and kind."""
    largest = max(map(abs, values)) or 1.0
    scaled = [value / largest for value in values]  # so that no square is beyond floats
    mean = math.fsum(scaled) / len(scaled)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in scaled) / max(1, len(scaled) - 1)) or 1.0
    return tuple((v - mean) / spread for v in scaled)


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
