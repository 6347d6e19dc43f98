"""select(): which structures a budget takes. Arithmetic on scores; no torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from slimcore.budget import Budget
from slimcore.errors import BudgetError, UnknownNameError
from slimcore.plan import Plan, Width, others
from slimcore.scores import ALLOCATIONS, Scores, checked_protection
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
    Raises BudgetError where the budget is malformed or out of reach, UnknownNameError for an unknown allocation.
    """
    budget = Budget(ratio=ratio, params=params, bytes=bytes, layers=layers, local_ratio=local_ratio)
    first, last = protect = checked_protection(scores.protect if protect is None else protect)
    if multiple_of < 1:
        raise BudgetError(f"multiple_of must be 1 or more (got {multiple_of})")
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
        keep, candidates = tuple(range(len(scores.shapes))), range(first, len(scores.shapes) - last)
        if local_ratio is not None:
            width = cut_locally(scores, budget, candidates, multiple_of)
        else:
            target = _target(scores, budget)
            width = cut_to(scores, budget, target, candidates, multiple_of, share, attention_ratio)
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
    return tuple(others(candidates[:number], count))


def _layers_to_remove(scores: Scores, budget: Budget, candidates: Sequence[int]) -> int:
    """How many candidates, from the front, come nearest to the budget."""
    if budget.layers is not None:
        return budget.layers
    target = _target(scores, budget)
    sizes = [shape.parameters for shape in scores.shapes]
    cuts = list(accumulate((sizes[layer] for layer in candidates), initial=0))
    nearest = min(range(len(cuts)), key=lambda n: abs(cuts[n] - target))
    # Out of reach only if one more whole layer would have come nearer.
    short = target - cuts[-1]
    return nearest if short <= max(sizes) / 2 else math.ceil(short / max(sizes)) + len(candidates)
