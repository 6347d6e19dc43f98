"""select(): which structures a budget takes. Arithmetic on scores; no torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from slimcore.budget import Budget
from slimcore.errors import BudgetError, UnknownNameError
from slimcore.kept import Width, others
from slimcore.plan import Plan, Step
from slimcore.scores import ALLOCATIONS, Scores, checked_protection
from slimcore.target import cuts_nothing, to_remove
from slimcore.widths import cut_locally, cut_to


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
    Raises BudgetError where the budget is malformed, out of reach, or so small that nothing would go; UnknownNameError
    for an unknown allocation.
    """
    budget = Budget(ratio=ratio, params=params, bytes=bytes, layers=layers, local_ratio=local_ratio)
    protect = checked_protection(scores.protect if protect is None else protect)
    if type(multiple_of) is not int or multiple_of < 1:
        raise BudgetError(f"multiple_of must be a whole number, 1 or more (got {multiple_of!r})")
    scored = dict(scores.provenance)
    if scores.values:
        if (local_ratio, multiple_of, allocation, attention_ratio) != (None, 1, None, None):
            raise BudgetError(
                f"{scores.method} removes whole layers: local_ratio, multiple_of, allocation and attention_ratio are"
                " for methods that cut inside them"
            )
        keep, width = _layers(scores, budget, protect), dict[int, Width]()
    else:
        if layers is not None:
            raise BudgetError(f"{scores.method} cuts inside layers: give ratio, params, bytes or local_ratio")
        share = scores.allocation if allocation is None else allocation
        if share not in ALLOCATIONS:
            raise UnknownNameError("allocation", share, ALLOCATIONS)
        if attention_ratio is not None and not share.endswith("MM"):
            raise BudgetError(f"attention_ratio is for allocation UL-MM or AL-MM (got {share})")
        scored |= {"allocation": share}
        keep, candidates = tuple(range(len(scores.shapes))), _candidates(scores, budget, protect)
        if local_ratio is not None:
            width = cut_locally(scores, budget, candidates, multiple_of)
        else:
            width = cut_to(scores, budget, candidates, multiple_of, share, attention_ratio)
    return Plan(
        method=scores.method,
        shapes=scores.shapes,
        parameters_before=scores.total_parameters,
        keep=keep,
        width=width,
        steps=(Step(scores.method, budget, scored),),
        multiple_of=multiple_of,
        protect=protect,
        scores=scores.values,
        width_scores=scores.widths,
    )


def _candidates(scores: Scores, budget: Budget, protect: tuple[int, int]) -> range:
    """The layers that may be cut. Raises BudgetError where there is none."""
    first, last = protect
    count = len(scores.shapes)
    if first + last < count:
        return range(first, count - last)
    raise BudgetError(
        f"{budget.words} cuts nothing: none of the {count} layers may be cut, as the first {first} and last {last} are"
        " protected; protect fewer, (0, 0) protects none"
    )


def _layers(scores: Scores, budget: Budget, protect: tuple[int, int]) -> tuple[int, ...]:
    """The layers that stay."""
    count, candidates = len(scores.values), _candidates(scores, budget, protect)
    # One layer at least stays, whatever is protected.
    order = [i for i in scores.order if i in candidates][: count - 1]
    number = _layers_to_remove(scores, budget, order)
    if number > len(order):
        raise BudgetError(
            f"{budget.words} asks for {number} of {count} layers, but at most {len(order)} may be cut"
            f" (the first {protect[0]} and last {protect[1]} are protected, and one always stays):"
            " ask for less, or protect fewer layers"
        )
    return tuple(others(order[:number], count))


def _layers_to_remove(scores: Scores, budget: Budget, order: Sequence[int]) -> int:
    """How many layers of `order`, from the front, come nearest to the budget; more than there are: out of reach.

    Raises BudgetError where leaving all comes nearer than taking one.
    """
    if budget.layers is not None:
        return budget.layers
    target = to_remove(scores, budget)
    sizes = [shape.parameters for shape in scores.shapes]
    cuts = list(accumulate((sizes[layer] for layer in order), initial=0))
    # Out of reach only if one more whole layer would have come nearer.
    short = target - cuts[-1]
    if short > max(sizes) / 2 or not order:
        return max(1, math.ceil(short / max(sizes))) + len(order)
    nearest = min(range(1, len(cuts)), key=lambda n: abs(cuts[n] - target))
    if abs(cuts[nearest] - target) > target:
        raise cuts_nothing(scores, budget, "layer", cuts[1], cuts[1] / 2)
    return nearest
