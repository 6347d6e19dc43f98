"""A budget in parameters of one model: how many it asks to remove, and the smallest that removes any. No torch here."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction

from slimcore.budget import Budget
from slimcore.errors import BudgetError
from slimcore.scores import Scores

_UP = Context(prec=4, rounding=ROUND_CEILING)  # digits of a suggested ratio


def to_remove(scores: Scores, budget: Budget) -> float:
    """Parameters to remove. Raises BudgetError where more are to be left than there are."""
    if budget.ratio is not None:
        return budget.ratio * _in_blocks(scores)
    left = budget.params if budget.params is not None else (budget.bytes or 0) / scores.bytes_per_parameter
    if left > scores.total_parameters:
        has = scores.total_parameters * (1 if budget.params is not None else scores.bytes_per_parameter)
        raise BudgetError(f"{budget.words} is more than the model has ({has:,.0f}): ask for less")
    return scores.total_parameters - left


def cuts_nothing(scores: Scores, budget: Budget, one: str, size: int, least: float) -> BudgetError:
    """The error for a budget by which nothing goes.

    `one`: what would go first, of `size` parameters; `least`: parameters to remove, of which it would go.
    """
    if budget.ratio is not None:
        blocks = _in_blocks(scores)
        exact = Fraction(least) / blocks
        share = rounded_up(exact)
        while float(share) * blocks < least:
            share = _UP.next_plus(share)
        is_, ask = f"{size / blocks:.3g} of the block parameters", f"at least {share:f}"
    else:
        each, unit = (scores.bytes_per_parameter, "bytes") if budget.params is None else (1, "parameters")
        most = math.floor((scores.total_parameters - least) * each)
        is_, ask = f"{size * each:,.0f} {unit}", f"at most {most:,}"
    return BudgetError(f"{budget.words} cuts nothing: one {one} is {is_}; ask for {ask}")


def rounded_up(share: Fraction) -> Decimal:
    """The next number of four digits."""
    return _UP.divide(Decimal(share.numerator), Decimal(share.denominator))


def _in_blocks(scores: Scores) -> int:
    return sum(shape.parameters for shape in scores.shapes)
