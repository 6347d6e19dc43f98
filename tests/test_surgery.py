"""prune_ cuts all that a plan says or nothing, and a plan knows the weights that it was made for."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore import surgery
from slimcore.digest import digest, without_weights
from slimcore.errors import OtherWeightsWarning, PlanError, SlimcoreError
from slimcore.kept import Width
from slimcore.plan import Plan, Step
from slimcore.scores import Widths
from tests.helpers import ids, tiny, width_plans
from tests.test_plan_json import check_cut, same, small, state

NONSENSE = (None, True, 0, -1, 1.0, math.nan, "x", (), (1.0,), (True,), ("0",), (2, 1), (0, 99), [0, 1], {0}, {"x": 1},
            {0: None}, {0: ((0,), (0,))}, {0.0: Width((0,), (0,))}, {True: Width((0,), (0,))},
            {0: Width((0,), (0.0,))}, {0: Width((0, 1), [0])}, {0: Width((), (0,))}, {0: Width((0,), (0,), (0.5,))},
            {0: Width((0, 1), tuple(range(39)), (), (math.nan,))}, {0: Width((0, 1), tuple(range(39)), (), (1e39,))},
            {0: Width((0, 1), tuple(range(39)), (), ("1",))}, (None,) * 4,
            (Width((0,), (0,)),), (Step("y"),))  # fmt: skip
FIELDS = sorted(Plan.__dataclass_fields__)
SHAPES = slimcore.unscored(small(), method="flap").shapes
COUNT = sum(p.numel() for p in small().parameters())


@settings(max_examples=200)
@given(st.sampled_from(FIELDS), st.sampled_from(NONSENSE))
def test_a_plan_made_of_nonsense_is_refused_or_cuts_as_it_says(name, value):
    """Made in Python, whatever a field is: no model is left half cut, and what can be made can be stored."""
    good = {"method": "x", "shapes": SHAPES, "parameters_before": COUNT, "keep": (0, 1, 3)}
    try:
        plan = Plan(**good | {name: value})
    except SlimcoreError as error:
        assert "\n" not in str(error)
        return
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    check_cut(plan)


@pytest.mark.parametrize("record", [[], {"x": {1, 2}}, {"x": torch.ones(1)}, {"x": math.inf}])
def test_a_step_holds_what_json_can(record):
    """Or its plan could not be written, after all the work."""
    with pytest.raises(PlanError, match="scored must"):
        Step("x", scored=record)


@settings(max_examples=10)
@given(st.data())
def test_a_plan_for_another_model_leaves_the_model_as_it_was(data):
    """Bit for bit: weights, config, class."""
    plan = data.draw(width_plans(tiny(layers=4), depth=True))
    other = tiny(layers=4, heads=6, kv_heads=3)
    before = state(other)
    with pytest.raises(PlanError, match="score this model and select again"):
        slimcore.prune_(other, plan)
    assert same(before, state(other))


def test_what_fails_late_has_changed_nothing(monkeypatch):
    """The cut is tried without weights first: an error of its last step comes before its first."""

    def fail(_model):
        raise ValueError("no config for this")

    monkeypatch.setattr(surgery, "renumber_", fail)
    model = small()
    before = state(model)
    for method, budget in (("flap", {"ratio": 0.3}), ("depth-magnitude", {"layers": 1})):
        plan = slimcore.select(slimcore.score(model, ids(), method=method, protect=(0, 0)), **budget)
        for cut in (slimcore.prune_, lambda m, p: slimcore.heal_(m, p, ids(8))):
            with pytest.raises(ValueError, match="no config for this"):
                cut(model, plan)
            assert same(before, state(model))


def test_a_copy_without_weights_is_the_model_in_all_else():
    """Same class, names, shapes, dtypes, ties; a config of its own; and the model keeps what it has."""
    model = tiny(tied=True, bias=True, dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(requires_grad=False)
    before = {name: (p, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    copy = without_weights(model)
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in copy.named_parameters()} == {
        n: known[1:] for n, known in before.items()
    }
    assert {p.device.type for p in copy.parameters()} == {"meta"}
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    assert type(copy) is type(model)
    assert copy.config is copy.model.layers[0].self_attn.config is not model.config
    assert all(p is before[name][0] for name, p in model.named_parameters())


def test_a_digest_tells_weights_apart_and_not_their_dtype():
    """A copy in a wider dtype is the same; a rounded one, another seed and one changed matrix are not."""
    half = tiny(dtype=torch.bfloat16)
    known = digest(half)
    assert digest(tiny(dtype=torch.bfloat16)) == digest(half.float()) == known
    assert len({known, digest(tiny()), digest(tiny(seed=1)), digest(tiny(dtype=torch.float16))}) == 4
    model = tiny()
    before = digest(model)
    model.model.layers[3].mlp.up_proj.weight.data *= 1.001
    assert digest(model) != before
    assert digest(without_weights(model)) is None


def found(model, method="depth-magnitude"):
    """A plan that was scored on `model`."""
    return slimcore.select(slimcore.score(model, ids(), method=method, protect=(1, 1)), ratio=0.3)


@pytest.mark.parametrize("method", ["depth-magnitude", "flap"])
@pytest.mark.parametrize("cut", [slimcore.prune_, lambda model, plan: slimcore.heal_(model, plan, ids(8))])
def test_a_plan_warns_of_other_weights(method, cut):
    """Once, by prune_ and heal_ alike, and cuts; not of its own weights, nor of these in a wider dtype."""
    plan = found(tiny(dtype=torch.bfloat16), method)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cut(tiny(dtype=torch.bfloat16), plan)
        cut(tiny(dtype=torch.bfloat16).float(), plan)
    assert not said
    model = tiny(seed=1)
    with pytest.warns(OtherWeightsWarning, match="the plan was made for other weights") as said:
        cut(model, plan)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert sum(p.numel() for p in model.parameters()) == plan.parameters


def test_a_plan_without_weights_fits_any_and_a_composed_one_those_of_its_first():
    """What `unscored` made has no digest; of two steps the second was made for what the first leaves."""
    model = tiny(layers=8)
    free = slimcore.select(slimcore.unscored(model, method="flap"), ratio=0.2)
    assert free.weights_sha256 is None
    slimcore.prune_(tiny(layers=8, seed=1), free)
    slimcore.prune_(without_weights(model), found(model))
    first = found(model)
    slimcore.prune_(model, first)
    second = found(model, "flap")
    both = first.then(second)
    assert both.weights_sha256 == first.weights_sha256 != second.weights_sha256
    slimcore.prune_(tiny(layers=8), both)
    with pytest.warns(OtherWeightsWarning):
        slimcore.prune_(tiny(layers=8, seed=1), both)


def test_scores_by_hand_are_stored_too():
    """A plan of Widths by hand reads back."""
    widths = tuple(Widths((0.5, 1.0), tuple(range(40))) for _ in range(4))
    plan = Plan("x", SHAPES, COUNT, (0, 1), width_scores=widths)
    assert Plan.from_dict(plan.as_dict()) == plan
