"""Everything slimcore raises on bad input: the value, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SlimcoreError(Exception):
    """Base of all errors a caller may want to catch."""


class UnknownNameError(SlimcoreError):
    """A model, method, grid or other name that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{guess} (known: {', '.join(names)}){hint and '; ' + hint}")


class BudgetError(SlimcoreError):
    """A budget that is malformed, out of range, or cannot be reached."""


class TextError(SlimcoreError):
    """A text that is missing, empty or too short, or tokens that do not fit the model."""


class UnsupportedModelError(SlimcoreError):
    """A model whose family slimcore does not know, or that lacks what was asked of it."""


class CheckpointError(SlimcoreError):
    """A model that cannot be found, read or written whole."""


class PlanError(SlimcoreError):
    """A plan that is malformed or does not fit its model."""


class ResultsError(SlimcoreError):
    """A grid, result or baseline that is malformed or cannot be read or written."""


class OtherWeightsWarning(UserWarning):
    """A plan is used on a model of the right shape, but was made for other weights."""
