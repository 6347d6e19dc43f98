"""Budget: one unit, checked, and written so that it reads back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcore.budget import Budget
from slimcore.errors import BudgetError

RATIOS = st.floats(0, 1, exclude_min=True, exclude_max=True)
COUNTS = st.integers(1, 10**18)
ANY = st.one_of(
    [st.builds(Budget, **{name: RATIOS}) for name in ("ratio", "local_ratio")]
    + [st.builds(Budget, **{name: COUNTS}) for name in ("params", "bytes", "layers")]
)


@given(ANY)
def test_every_budget_reads_back_from_its_short_form(budget):
    """To the last parameter, and to the smallest ratio that there is."""
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(params=4_916_965_376), "4.916965376B"),
        (Budget(params=4_900_000_000), "4.9B"),
        (Budget(params=106_200_000), "106.2M"),
        (Budget(params=99_000_000), "99M"),
        (Budget(params=7), "0.000007M"),
        (Budget(bytes=9_800_000_000), "9.8GB"),
        (Budget(bytes=200_000_000), "200MB"),
        (Budget(ratio=0.27), "0.27"),
        (Budget(ratio=1e-05), "0.00001"),
        (Budget(local_ratio=0.35), "0.35local"),
        (Budget(layers=9), "9L"),
    ],
)
def test_the_short_form_is_as_people_write_it(budget, text):
    """Cells are named by it: no trailing zeros, no exponents."""
    assert str(budget) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9.7L", "is no whole number of layers"),
        ("0.1234567M", "is no whole number of params"),
        ("0L", r"layers must be a whole number from 1 to 1e\+18 \(got 0\)"),
        ("1.0", "has no unit, and a ratio lies between 0 and 1"),
        ("4916965376", "has no unit, and a ratio lies between 0 and 1: .* 4.9B"),
        ("0", "has no unit"),
        ("1.0local", "local_ratio must lie between 0 and 1"),
        *(
            (text, "is not a ratio")
            for text in ("", "-0.1", "nine", "9 L", "4.9b", "1e9", "1e-05", "nan", "٣L", "9" * 99)
        ),
    ],
)
def test_a_short_form_that_is_refused_says_why(text, why):
    """In one line."""
    with pytest.raises(BudgetError, match=why) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ratio", "local_ratio"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), float("inf"), True, "0.2", [0.2], 1j])
def test_a_ratio_is_a_number_between_0_and_1(name, value):
    """Both excluded: nothing, or everything, is no pruning."""
    with pytest.raises(BudgetError, match=f"{name} must lie between 0 and 1, both excluded"):
        Budget(**{name: value})


@pytest.mark.parametrize("name", ["params", "bytes", "layers"])
@pytest.mark.parametrize("value", [0, -1, 2.0, float("nan"), float("inf"), True, "2", 10**19])
def test_a_count_is_a_whole_number(name, value):
    """No float, no bool, no text."""
    with pytest.raises(BudgetError, match=f"{name} must be a whole number from 1 to"):
        Budget(**{name: value})


def test_exactly_one_budget_is_taken():
    """None and two are refused, by name."""
    with pytest.raises(BudgetError, match=r"exactly one of.*got none"):
        Budget()
    with pytest.raises(BudgetError, match="got ratio, layers"):
        Budget(ratio=0.2, layers=2)


def test_numbers_of_numpy_are_taken_as_python_s():
    """So that a plan with them can be written."""
    assert Budget(layers=np.int64(3)) == Budget(layers=3)
    assert type(Budget(layers=np.int64(3)).layers) is int
    assert type(Budget(ratio=np.float64(0.5)).ratio) is float
