"""select() of what is inside layers, as arithmetic: budgets, floors, multiples, allocations, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import slimcore
from slimcore.errors import BudgetError, PlanError, UnknownNameError
from slimcore.plan import Plan
from slimcore.scores import ALLOCATIONS, LayerShape, Means, Scores, Widths
from slimcore.selection import select

HIDDEN, HEAD_DIM = 64, 16


def shape(groups, channels, n_rep=2):
    """A layer by hand: the KV group's and the channel's parameters, and two norms."""
    group, channel = (2 * n_rep + 2) * HEAD_DIM * HIDDEN, 3 * HIDDEN
    return LayerShape(
        parameters=groups * group + channels * channel + 2 * HIDDEN, hidden=HIDDEN, head_dim=HEAD_DIM,
        heads=groups * n_rep, kv_groups=groups, kv_group_parameters=group, channels=channels,
        channel_parameters=channel, o_bias=False, down_bias=False,
    )  # fmt: skip


@st.composite
def scored(draw, *, compensated=None):
    """Scores of two to six layers, each of its own width."""
    values = st.floats(-100, 100)
    layers = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 60)), min_size=2, max_size=6))
    shapes = tuple(shape(groups, channels) for groups, channels in layers)
    widths = tuple(
        Widths(
            tuple(draw(st.lists(values, min_size=g, max_size=g))), tuple(draw(st.lists(values, min_size=c, max_size=c)))
        )
        for g, c in layers
    )
    means = draw(st.booleans()) if compensated is None else compensated
    return Scores(
        "flap", shapes, sum(s.parameters for s in shapes) + draw(st.integers(0, 10**6)), widths=widths,
        means=tuple(Means((0.5,) * (32 * g), (0.5,) * c) for g, c in layers) if means else (), protect=(0, 0),
        standardised=True,
    )  # fmt: skip


def counts(plan):
    """KV groups and channels of each layer."""
    return [(len(plan.inside(i).kv_groups), len(plan.inside(i).channels)) for i in range(plan.num_layers)]


def attempt(*args, **options):
    """The plan, or none where the budget is out of reach or cuts nothing: the example is then not about it."""
    try:
        return select(*args, **options)
    except BudgetError as error:
        assume("at most" not in str(error) and "cuts nothing" not in str(error))
        raise


allocations = st.sampled_from(ALLOCATIONS)


@given(scored(), st.floats(0.01, 0.99), allocations)
def test_the_achieved_figure_is_within_one_structure_of_the_asked(scores, ratio, allocation):
    """By ratio, parameters or bytes: the same plan, within the largest structure, and one of each stays everywhere."""
    plan = attempt(scores, ratio=ratio, allocation=allocation)
    total = sum(s.parameters for s in scores.shapes)
    one = max(s.kv_group_parameters for s in scores.shapes)
    assert abs(plan.ratio - ratio) * total <= one
    assert all(groups >= 1 and channels >= 1 for groups, channels in counts(plan))
    left = scores.total_parameters - ratio * total
    for other in (
        select(scores, params=int(left), allocation=allocation),
        select(scores, bytes=int(4 * left), allocation=allocation),
    ):
        assert abs(other.parameters - left) <= one


@given(scored(), st.floats(0.01, 0.99), st.floats(0.01, 0.99), allocations)
def test_more_removed_keeps_a_subset(scores, one, other, allocation):
    """One-shot plans are nested inside the layers too."""
    small, large = (attempt(scores, ratio=r, allocation=allocation) for r in sorted((one, other)))
    for i in range(small.num_layers):
        assert set(large.inside(i).kv_groups) <= set(small.inside(i).kv_groups)
        assert set(large.inside(i).channels) <= set(small.inside(i).channels)


@given(scored(), st.floats(0.01, 0.99), allocations)
def test_what_goes_scores_lowest_in_its_layer(scores, ratio, allocation):
    """No kept structure scores lower than a removed one of its kind and layer."""
    plan = attempt(scores, ratio=ratio, allocation=allocation)
    for i, widths in enumerate(scores.widths):
        inside = plan.inside(i)
        for kept, values in ((inside.kv_groups, widths.kv_groups), (inside.channels, widths.channels)):
            gone = [v for j, v in enumerate(values) if j not in kept]
            assert not gone or max(gone) <= min(values[j] for j in kept)


@given(scored(), st.floats(0.05, 0.9), st.sampled_from([2, 8, 16]), allocations)
def test_multiples_hold_in_every_layer_that_may_be_cut(scores, ratio, multiple, allocation):
    """Channels, and the widths of heads; still within one step of the asked, or refused."""
    small = min(s.channels for s in scores.shapes) < multiple
    try:
        plan = select(scores, ratio=ratio, multiple_of=multiple, allocation=allocation)
    except BudgetError as error:
        assert small == ("cannot be met" in str(error))
        assume(False)
    assert all(c % multiple == 0 for _, c in counts(plan))
    one = max(s.kv_group_parameters + multiple * s.channel_parameters for s in scores.shapes)
    assert abs(plan.ratio - ratio) * sum(s.parameters for s in scores.shapes) <= one


@given(scored(), st.floats(0.01, 0.99))
def test_local_ratio_counts_as_published(scores, ratio):
    """Of C channels C - int(C (1 - r)) go; of attention's as many whole groups as fit into that."""
    try:
        plan = select(scores, local_ratio=ratio)
    except BudgetError as error:
        assert "would leave no" in str(error)
        assert any(int(s.channels * (1 - ratio)) < 1 or s.kv_groups * HEAD_DIM * (1 - ratio) < 1 for s in scores.shapes)
        return
    for (groups, channels), before in zip(counts(plan), scores.shapes, strict=True):
        width = before.kv_groups * HEAD_DIM
        assert channels == int(before.channels * (1 - ratio))
        assert groups == before.kv_groups - (width - int(width * (1 - ratio))) // HEAD_DIM


def test_heads_keep_to_a_multiple_where_one_is_none():
    """With heads of 16, multiples of 64 take four KV heads together; of 16, one."""
    scores = replace(SIX, shapes=(shape(12, 128),) * 6, widths=(Widths((0.0,) * 12, (0.0,) * 128),) * 6)
    assert {g % 4 for g, _ in counts(select(scores, ratio=0.4, multiple_of=64))} == {0}
    assert {c % 64 for _, c in counts(select(scores, ratio=0.4, multiple_of=64))} == {0}
    assert any(g % 4 for g, _ in counts(select(scores, ratio=0.4, multiple_of=16)))


SIX = Scores(
    "llm-pruner", (shape(4, 100),) * 6, 10**6,
    widths=tuple(Widths(tuple(range(4)), tuple(float(i) for i in range(100))) for _ in range(6)),
    protect=(1, 1),
)  # fmt: skip


def test_protected_layers_stay_whole():
    """As published for LLM-Pruner, or as asked."""
    for protect, free in ((None, 4), ((2, 2), 2), ((0, 0), 6)):
        found = counts(select(SIX, ratio=0.1, protect=protect))
        assert sum(c != (4, 100) for c in found) == free


def test_a_share_too_small_for_a_kv_group_is_met_with_channels_and_says_so():
    """One of two groups is half of attention: 10 % is met without one."""
    shapes = (shape(2, 100),) * 6
    plan = select(replace(SIX, shapes=shapes, widths=(Widths((0.0,) * 2, (0.0,) * 100),) * 6), ratio=0.1)
    assert {g for g, _ in counts(plan)} == {2}
    assert plan.ratio == pytest.approx(0.1, abs=0.01)
    assert "no KV group goes (one is 50% of a layer's): the budget is met with channels" in str(plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 0.99}, BudgetError, r"ratio=0.99 asks to remove [\d,]+ parameters, but at most [\d,]+ may go"),
        ({"params": 10**6 + 1}, BudgetError, r"params=1,000,001 is more than the model has \(1,000,000\)"),
        ({"bytes": 4 * 10**6 + 4}, BudgetError, r"bytes=4,000,004 is more than the model has \(4,000,000\)"),
        ({"local_ratio": 0.995}, BudgetError, "local_ratio=0.995 would leave no KV group in layer 1"),
        ({"layers": 2}, BudgetError, "llm-pruner cuts inside layers: give ratio"),
        ({"ratio": 0.2, "multiple_of": 128}, BudgetError, "of=128 cannot be met: layer 1 has 4 KV heads of 16"),
        ({"ratio": 0.2, "multiple_of": 0}, BudgetError, "multiple_of must be a whole number, 1 or more"),
        ({"ratio": 0.2, "multiple_of": 8.0}, BudgetError, r"multiple_of must be a whole number, 1 or more \(got 8.0\)"),
        ({"ratio": 0.2, "protect": 7}, BudgetError, r"protect must be two numbers of layers, 0 or more \(got 7\)"),
        ({"ratio": 0.2, "protect": (1.0, 0)}, BudgetError, "protect must be two numbers of layers, 0 or more"),
        ({"ratio": 0.01, "multiple_of": 64}, BudgetError, "multiple_of=64 alone removes 27,648 parameters"),
        ({"ratio": 0.2, "allocation": "AL-UM"}, UnknownNameError, "unknown allocation 'AL-UM'; did you mean"),
        ({"ratio": 0.2, "allocation": "UL-MM", "attention_ratio": 2}, BudgetError, "attention_ratio must lie between"),
        ({"ratio": 0.2, "attention_ratio": 0.2}, BudgetError, r"attention_ratio is for allocation .* \(got UL-UM\)"),
        ({"ratio": 0.2, "protect": (3, 3)}, BudgetError, "ratio=0.2 cuts nothing: none of the 6 layers .* fewer"),
        ({"ratio": 0.02, "allocation": "UL-MM", "attention_ratio": 0.6}, BudgetError, "for a smaller attention_ratio"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_in_one_line(options, error, message):
    """With the value, what can be had, and what to do."""
    with pytest.raises(error, match=message) as caught:
        select(SIX, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"local_ratio": 0.2}, {"ratio": 0.2, "multiple_of": 64}, {"ratio": 0.2, "allocation": "AL-AM"}]
)
def test_whole_layers_have_no_widths(options):
    """What is for widths is refused for depth by its name."""
    depth = Scores("depth-ppl", SIX.shapes, 10**6, (0.0,) * 6)
    with pytest.raises(BudgetError, match="depth-ppl removes whole layers"):
        select(depth, **options)


def drawn_plan(scores, ratio):
    """A plan of `scores`, of which another can go on."""
    return select(scores, ratio=ratio, protect=(0, 0))


@given(scored(), st.floats(0.05, 0.4))
def test_a_plan_counts_itself_and_survives_json(scores, ratio):
    """Its shapes afterwards add up to its parameters; to a file and back it is equal, its means included."""
    plan = attempt(scores, ratio=ratio)
    outside = scores.total_parameters - sum(s.parameters for s in scores.shapes)
    assert sum(s.parameters for s in plan.after()) + outside == plan.parameters
    assert Plan.from_dict(plan.as_dict()) == plan
    assert Plan.from_dict(plan.without_width_scores().as_dict()) == plan.without_width_scores()


def test_plans_are_compared():
    """By the parameters both cut and each alone; plans for different models are not."""
    one, other = drawn_plan(SIX, 0.2), select(SIX, ratio=0.2, allocation="AL-MM", protect=(2, 0))
    both = one.compare(other)
    cut = one.parameters_before - one.parameters
    assert f"by both {cut:,}; by llm-pruner alone 0; by llm-pruner alone 0" in one.compare(one)
    numbers = [int(word.strip(";").replace(",", "")) for word in both.split() if word[0].isdigit()]
    assert numbers[0] + numbers[1] == cut
    assert numbers[0] + numbers[2] == other.parameters_before - other.parameters
    with pytest.raises(PlanError, match="different models"):
        one.compare(replace(one, parameters_before=5))


def test_a_plan_that_was_edited_is_refused():
    """A width that is no list of indices of its layer, means that are not one an input, a count that is not its own."""
    plan = drawn_plan(replace(SIX, means=(Means((0.1,) * 128, (0.2,) * 100),) * 6), 0.2).as_dict()
    for change, message in (
        (lambda d: d["width"]["1"].update(channels=[5, 3]), "layer 1: channels must be ascending indices within 0..99"),
        (lambda d: d["width"]["1"].update(kv_groups=[]), "layer 1: kv_groups must be ascending"),
        (lambda d: d["width"]["1"].update(down_means=[1.0]), "down_means must have one value for each of"),
        (lambda d: d.update(keep=[0, 2, 3, 4, 5]), "width names layer 1, which is not kept"),
        (lambda d: d.update(parameters=7), r"parameters must be that of what it keeps, \d+ \(got 7\)"),
        (lambda d: d.update(ratio=0.5), r"ratio must be that of what it keeps, 0.\d+ \(got 0.5\)"),
        (lambda d: d["width"].update(x={}), "plan"),
    ):
        broken = Plan.from_dict(plan).as_dict()
        change(broken)
        with pytest.raises(PlanError, match=message):
            Plan.from_dict(broken)


def test_public_names_of_scores():
    """Scores of both kinds are made by hand as those of models are."""
    assert slimcore.Scores is Scores
    assert slimcore.select(SIX, ratio=0.1).method == "llm-pruner"
