"""select() of whole layers, and Plan, as arithmetic."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcore.errors import BudgetError, SlimcoreError
from slimcore.plan import Plan
from slimcore.scores import LayerShape, Scores
from slimcore.selection import select


def layer(parameters):
    """A layer of which only the size matters."""
    return LayerShape(parameters, 8, 4, 4, 2, 1, 3, 1, o_bias=False, down_bias=False)


finite = st.floats(-1e6, 1e6)


@st.composite
def scored(draw):
    """Scores of 2 to 40 layers of one size."""
    values = draw(st.lists(finite, min_size=2, max_size=40))
    size = draw(st.integers(10, 10**9))
    total = size * len(values) + draw(st.integers(0, 10**9))
    return Scores("depth-ppl", (layer(size),) * len(values), total, tuple(values))


@given(scored(), st.data())
def test_more_removed_keeps_a_subset(scores, data):
    """One-shot plans are nested."""
    count = len(scores.values)
    more = data.draw(st.integers(1, count - 1))
    fewer = data.draw(st.integers(1, more))
    small, large = (select(scores, layers=n, protect=(0, 0)) for n in (fewer, more))
    assert set(large.keep) <= set(small.keep)
    assert len(large.keep) == count - more
    assert large.parameters == scores.total_parameters - more * scores.shapes[0].parameters


@given(scored(), st.floats(0.001, 0.999))
def test_the_achieved_ratio_is_the_nearest_whole_layers_allow(scores, ratio):
    """Within half a layer of the asked one, or refused because not even all layers reach it."""
    count = len(scores.values)
    try:
        plan = select(scores, ratio=ratio, protect=(0, 0))
    except BudgetError as error:
        assert ratio > (count - 1) / count or ("cuts nothing" in str(error) and ratio < 0.5 / count)
        return
    assert abs(plan.ratio - ratio) <= 0.5 / count + 1e-9
    assert plan.ratio == pytest.approx(len(plan.removed) / count)


@given(scored(), st.data())
def test_params_and_layers_are_one_budget(scores, data):
    """Asking for the parameters that n layers fewer leave removes n layers."""
    layers = data.draw(st.integers(1, len(scores.values) - 1))
    by_layers = select(scores, layers=layers, protect=(0, 0))
    assert select(scores, params=by_layers.parameters, protect=(0, 0)).keep == by_layers.keep


@given(scored(), st.integers(0, 5), st.integers(0, 5), st.data())
def test_protected_layers_stay(scores, first, last, data):
    """The ends are never cut, and asking for more than the rest says how many may go."""
    count = len(scores.values)
    free = max(0, min(count - first - last, count - 1))
    layers = data.draw(st.integers(1, count + 1))
    if layers > free:
        with pytest.raises(
            BudgetError, match=f"at most {free} may be cut" if first + last < count else "protect fewer"
        ):
            select(scores, layers=layers, protect=(first, last))
    else:
        plan = select(scores, layers=layers, protect=(first, last))
        assert all(first <= i < count - last for i in plan.removed)


@given(scored(), st.data())
def test_a_plan_survives_json(scores, data):
    """To JSON text and back, equal."""
    plan = select(scores, layers=data.draw(st.integers(1, len(scores.values) - 1)), protect=(0, 0))
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def test_printing_a_plan_shows_what_goes():
    """A picture of the layers, and the counts."""
    scores = Scores("depth-ppl", (layer(10),) * 4, 45, (3.0, 1.0, 2.0, 4.0))
    text = str(select(scores, layers=2, protect=(0, 0)))
    assert "[#..#]" in text
    assert "45 -> 25" in text
    assert "removed     1, 2" in text


def test_every_error_of_a_plan_is_a_slimcore_error():
    """One class to catch."""
    with pytest.raises(SlimcoreError):
        Plan("depth-ppl", (layer(1),) * 4, 4, (2, 1))
