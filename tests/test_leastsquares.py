"""Ridge least squares against torch's own, over rows; and how its ridge is chosen."""

from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcore.leastsquares import RIDGES, Sums, fit, solve

I, H = 7, 3  # inputs, outputs


def drawn(seed, folds=4, noise=3.0, rows=20):
    """Rows X and E of each fold, float32: E is one map of X in all of them, and noise."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(I, H, generator=generator)
    reads = [torch.randn(rows, I, generator=generator) for _ in range(folds)]
    return [(x, x @ shared + noise * torch.randn(rows, H, generator=generator)) for x in reads]


def summed(rows):
    """The sums of rows, taken in two parts."""
    sums = Sums.none(I, H, torch.device("cpu"))
    for part in (slice(0, 9), slice(9, None)):
        sums.add_(rows[0][part], rows[1][part])
    return sums


def by_lstsq(folds, ridge):
    """The change by least squares over the rows and, below them, the ridge's own."""
    x, e = (torch.cat(parts).double() for parts in zip(*folds, strict=True))
    below = torch.full((I,), ridge, dtype=x.dtype).sqrt().diag()
    return torch.linalg.lstsq(torch.cat([x, below]), torch.cat([e, torch.zeros(I, H, dtype=x.dtype)])).solution


def scale(folds):
    """The mean square of what is read, times the rows."""
    return float(torch.cat([x for x, _ in folds]).double().square().sum(0).mean())


def left(fold, change):
    """What is left of a fold's error."""
    x, e = (part.double() for part in fold)
    return float((e - x @ change).square().sum() / e.square().sum())


@given(seed=st.integers(0, 999), ridge=st.floats(1e-3, 1e3))
def test_a_solution_is_that_of_lstsq(seed, ridge):
    """The closed form over sums, and over rows."""
    rows = drawn(seed, folds=1)
    sums = summed(rows[0])
    change = solve(sums.gram.double(), sums.cross.double(), ridge)
    torch.testing.assert_close(change, by_lstsq(rows, ridge), rtol=1e-4, atol=1e-5)
    assert sums.left(change.float()) == pytest.approx(left(rows[0], change), abs=1e-5)


@given(seed=st.integers(0, 999), noise=st.sampled_from([0.1, 1.0, 3.0, 10.0]))
def test_the_ridge_is_chosen_on_rows_that_the_fit_has_not_seen(seed, noise):
    """Ridges are weakened while folds left out gain; the change is that of all rows with the last that did."""
    rows = drawn(seed, noise=noise)
    found = fit([summed(fold) for fold in rows])
    unseen = {
        ridge: [
            left(fold, by_lstsq([other for other in rows if other is not fold], ridge * scale(rows))) for fold in rows
        ]
        for ridge in RIDGES
    }
    chosen, least = None, 1.0
    for ridge, each in unseen.items():
        if fmean(each) >= least or max(each) > 1:
            break
        chosen, least = ridge, fmean(each)
    assert found.ridge == chosen
    assert found.left == pytest.approx(least, abs=1e-4)
    expected = torch.zeros(I, H).double() if chosen is None else by_lstsq(rows, chosen * scale(rows))
    torch.testing.assert_close(found.change, expected, rtol=1e-3, atol=1e-4)


def test_fewer_rows_and_more_noise_ask_for_a_stronger_ridge():
    """What a fixed ridge cannot give."""
    many, few, noisy = (
        fit([summed(fold) for fold in drawn(0, **case)]).ridge
        for case in ({"rows": 400, "noise": 5.0}, {"rows": 10, "noise": 5.0}, {"rows": 400, "noise": 30.0})
    )
    assert many < few
    assert many < noisy


def test_a_kind_of_text_that_a_fit_would_harm_keeps_the_change_away():
    """Three kinds agree, and one wants the opposite: whatever the ridge, it would lose by what the others gain."""
    agree = drawn(0, folds=3, noise=0.1)
    x, e = agree[0]
    found = fit([summed(fold) for fold in (*agree, (x, -e))])
    assert (found.ridge, found.left) == (None, 1.0)
    assert found.change.count_nonzero() == 0
    assert fit([summed(fold) for fold in agree]).left < 0.1


@pytest.mark.parametrize("rows", [(torch.zeros(9, I), torch.zeros(9, H)), (torch.ones(9, I), torch.zeros(9, H))])
def test_where_nothing_is_missing_nothing_is_changed(rows):
    """Not even by rounding."""
    found = fit([summed(rows)] * 3)
    assert found.ridge is None
    assert found.change.count_nonzero() == 0


def test_a_ridge_too_weak_for_float32_is_not_chosen():
    """One input a million times the others: sums that round below zero are no error, and nothing is NaN."""
    rows = [(torch.cat([x[:, :1] * 1e6, x[:, 1:]], 1), e) for x, e in drawn(0, noise=0.1)]
    found = fit([summed(fold) for fold in rows])
    assert bool(found.change.isfinite().all())
    assert found.left <= 1
    assert bool(solve(-torch.eye(I), torch.ones(I, H), 0.5).isnan().all())
