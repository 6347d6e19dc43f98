"""Ridge least squares over rows of several folds, whose ridge is chosen on the fold that a fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

# Tried from the strongest on, in units of the mean square of what is read.
RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


@dataclass
class Sums:
    """All that least squares needs of rows X (R, I) and E (R, H), however many there are; float32 on X's device."""

    gram: Tensor  # X^T X (I, I)
    cross: Tensor  # X^T E (I, H)
    square: float  # |E|^2

    @classmethod
    def none(cls, inputs: int, outputs: int, device: torch.device) -> Sums:
        """Of no rows."""
        return cls(torch.zeros(inputs, inputs, device=device), torch.zeros(inputs, outputs, device=device), 0.0)

    def add_(self, read: Tensor, error: Tensor) -> None:
        """Take in rows X and E, float32."""
        self.gram.addmm_(read.T, read)
        self.cross.addmm_(read.T, error)
        self.square += float(error.double().square().sum())

    def without(self, other: Sums) -> Sums:
        """Of the rows that `other` does not have."""
        return Sums(self.gram - other.gram, self.cross - other.cross, self.square - other.square)

    def left(self, change: Tensor) -> float:
        """|E - X D|^2 / |E|^2 of the change D (I, H)."""
        return 1 - float((change * (2 * self.cross - self.gram @ change)).sum()) / self.square


@dataclass(frozen=True)
class Fit:
    """The change D (I, H), and how it was found."""

    change: Tensor  # float64
    ridge: float | None  # one of RIDGES; None: even the strongest did harm, and nothing is changed
    left: float  # |E - X D|^2 / |E|^2 on a fold that the fit has not seen, the mean over folds


def fit(folds: Sequence[Sums]) -> Fit:
    """Fit D on all folds, with the ridge that is best, on average, for a fold left out.

    Ridges are weakened for as long as the folds left out gain, and none of them is worse off than without a change.
    Time: for each ridge and fold a Cholesky decomposition (I, I) and a solution (I, H) in float32; memory: three
    matrices (I, I) of float32 beside the folds', and two of float64 at the end.
    """
    whole = _total(folds)
    scale = float(whole.gram.diagonal().double().mean())
    chosen, least = None, 1.0
    judges = [fold for fold in folds if fold.square > 0]
    for ridge in RIDGES if scale > 0 and judges else ():
        left = [_left(fold, whole, ridge * scale) for fold in judges]
        if not (fmean(left) < least and max(left) <= 1):
            break
        chosen, least = ridge, fmean(left)
    if chosen is None:
        return Fit(torch.zeros_like(whole.cross, dtype=torch.float64), None, 1.0)
    change = solve(whole.gram.double(), whole.cross.double(), chosen * scale)
    return Fit(change, chosen, least)


def solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The D that minimises |E - X D|^2 + ridge |D|^2. `gram` = X^T X is overwritten, `cross` = X^T E.

    NaN where the ridge is too weak for the precision of `gram`.
    """
    gram.diagonal().add_(ridge)
    factor, fails = torch.linalg.cholesky_ex(gram)
    return cross * torch.nan if int(fails) else torch.cholesky_solve(cross, factor)


def _left(fold: Sums, whole: Sums, ridge: float) -> float:
    """What is left of the fold's error by a fit on the others."""
    others = whole.without(fold)
    return fold.left(solve(others.gram, others.cross, ridge))


def _total(folds: Sequence[Sums]) -> Sums:
    gram, cross = folds[0].gram.clone(), folds[0].cross.clone()
    for fold in folds[1:]:
        gram += fold.gram
        cross += fold.cross
    return Sums(gram, cross, sum(fold.square for fold in folds))
