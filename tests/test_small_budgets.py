"""A budget that cuts nothing is refused, with the smallest that does."""

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slimcore.errors import BudgetError
from slimcore.scores import ALLOCATIONS, Scores, Widths
from slimcore.selection import select
from tests.test_selection import SIX, attempt, scored, shape


def as_depth(scores):
    """The same model's layers, scored as wholes."""
    values = tuple(w.channels[0] for w in scores.widths)
    return replace(scores, method="depth-ppl", widths=(), means=(), values=values)


def asked_for(error):
    """The budget that an error tells to ask for."""
    return float(re.search(r"ask for at (?:least|most) ([\d.,]+)", str(error)).group(1).replace(",", ""))


@settings(max_examples=100)
@given(
    st.one_of(scored(), scored().map(as_depth)),
    st.sampled_from(["ratio", "params", "bytes"]),
    st.floats(0, 0.05, exclude_min=True),
    st.sampled_from(ALLOCATIONS),
    st.sampled_from([None, 0.0, 0.01]),
)
def test_a_budget_that_cuts_nothing_is_refused_with_the_smallest_that_does(scores, unit, share, allocation, attention):
    """In the unit that was asked; a little less than that smallest still cuts nothing."""
    options = {} if scores.values else {"allocation": allocation}
    if attention is not None and options and allocation.endswith("MM"):
        options["attention_ratio"] = attention
    blocks = sum(s.parameters for s in scores.shapes)
    whole = scores.total_parameters * (4 if unit == "bytes" else 1)
    budget = share if unit == "ratio" else max(1, whole - round(share * blocks))
    try:
        plan = select(scores, **{unit: budget}, **options)
    except BudgetError as error:
        assume("cuts nothing" in str(error) and "nor would another" not in str(error))
        least = asked_for(error)
    else:
        assert plan.removed or plan.width
        return
    asked = least if unit == "ratio" else int(least)
    found = attempt(scores, **{unit: asked}, **options)
    assert found.removed or found.width
    assert asked > budget if unit == "ratio" else asked < budget
    less = asked * 0.998 if unit == "ratio" else asked + (12 if unit == "bytes" else 3)
    assume(less < whole)
    with pytest.raises(BudgetError, match=r"cuts nothing|more than the model has"):
        select(scores, **{unit: less}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ratio": 0.03},
            "ratio=0.03 cuts nothing: one layer is 0.125 of the block parameters; ask for at least 0.0625",
        ),
        ({"params": 992}, "params=992 cuts nothing: one layer is 100 parameters; ask for at most 950"),
        ({"bytes": 4000}, "bytes=4,000 cuts nothing: one layer is 400 bytes; ask for at most 3,800"),
        ({"ratio": 0.3, "protect": (4, 4)}, "none of the 8 layers may be cut, as the first 4 and last 4 are protected"),
        ({"layers": 1, "protect": (9, 0)}, r"layers=1 cuts nothing: none of the 8 layers may be cut.*protect fewer"),
    ],
)
def test_what_cuts_nothing_says_what_would(options, message):
    """By depth, on eight layers."""
    depth = Scores("depth-ppl", (replace(shape(1, 1), parameters=100),) * 8, 1000, (0.0,) * 8, protect=(0, 0))
    with pytest.raises(BudgetError, match=message):
        select(depth, **options)
    assert len(select(depth, ratio=0.0625).removed) == len(select(depth, params=950).removed) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0001}, "ratio=0.0001 cuts nothing: one channel is 0.000729 of .*; ask for at least 0.0003645"),
        ({"local_ratio": 0.01, "multiple_of": 4}, "local_ratio=0.01 cuts nothing: widths are to be multiples of 4; "),
        ({"local_ratio": 1e-18}, "local_ratio=0.000000000000000001 cuts nothing: ask for at least"),
        ({"local_ratio": 0.35, "protect": (4, 2)}, "local_ratio=0.35 cuts nothing: none of the 6 layers may be cut"),
    ],
)
def test_widths_that_lose_nothing_are_refused(options, message):
    """With what to ask for, or to protect."""
    with pytest.raises(BudgetError, match=message) as caught:
        select(SIX, **options)
    if "ask" in str(caught.value):
        name = next(iter(options))
        assert select(SIX, **options | {name: asked_for(caught.value)}).width


def test_where_nothing_could_go_no_budget_is_proposed():
    """One KV group and one channel stay in each layer, and these have no more."""
    least = replace(SIX, shapes=(shape(1, 1),) * 6, widths=(Widths((0.0,), (0.0,)),) * 6)
    with pytest.raises(BudgetError, match="params=1,000,000 cuts nothing, nor would another"):
        select(least, params=10**6)
    with pytest.raises(BudgetError, match="at most 0 may go"):
        select(least, ratio=0.1)
    with pytest.raises(BudgetError, match=r"local_ratio=0.1 would leave no channel"):
        select(least, local_ratio=0.1)
