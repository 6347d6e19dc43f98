"""A width-pruned model is the dense model with the same structures masked, biases of FLAP included."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import slimcore
from slimcore.errors import BudgetError, PlanError, UnsupportedModelError
from slimcore.methods import METHODS
from slimcore.structure import FAMILIES
from tests.helpers import decoded, ids, masked_logits, models_drawn, tiny, width_plans

WIDTH_METHODS = [m.name for m in METHODS.values() if m.inside]


def close(logits, expected):
    """Equal within float32 error of logits that may be large."""
    return torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def check_truth(model, plan):
    """Counts, config, sizes and indices say what the model is."""
    shapes = plan.after()
    assert slimcore.footprint(model).parameters == plan.parameters
    assert model.config.num_hidden_layers == len(model.model.layers) == len(shapes)
    for index, (layer, shape) in enumerate(zip(model.model.layers, shapes, strict=True)):
        config = model.config.per_layer_config[index]
        assert config.num_attention_heads == shape.heads
        assert config.num_key_value_heads == shape.kv_groups
        assert config.intermediate_size == layer.mlp.intermediate_size == shape.channels
        assert layer.self_attn.num_key_value_groups == shape.heads // shape.kv_groups
        assert layer.self_attn.layer_idx == index
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                assert (module.out_features, module.in_features) == module.weight.shape
                assert module.bias is None or module.bias.shape == (module.out_features,)


@settings(max_examples=80)
@given(models_drawn(families=FAMILIES), st.data())
def test_any_plan_equals_the_masked_dense_model(model, data):
    """MHA and GQA, any family, layers and widths, with means or without; cached decoding is the uncached forward's."""
    plan = data.draw(width_plans(model, depth=True))
    tokens = ids(2, 7)
    expected = masked_logits(model, tokens, plan)
    slimcore.prune_(model, plan)
    with torch.no_grad():
        assert close(model(tokens, use_cache=False).logits, expected)
    check_truth(model, plan)
    logits, chosen = decoded(model, tokens, 5)
    assert torch.all(logits.max(-1).values - chosen <= 1e-4 * logits.abs().max())


@pytest.mark.parametrize("method", WIDTH_METHODS)
@settings(max_examples=15)
@given(model=models_drawn(), ratio=st.floats(0.05, 0.5), multiple_of=st.sampled_from([1, 4]))
def test_every_methods_plan_equals_the_masked_dense_model(method, model, ratio, multiple_of):
    """From scores to the cut: what the plan says is what is left."""
    tokens = ids(2, 9)
    scores = slimcore.score(model, tokens, method=method, protect=(0, 0))
    try:
        plan = slimcore.select(scores, ratio=ratio, multiple_of=multiple_of)
    except BudgetError as error:
        assert "at most" in str(error)  # with one KV group a layer, half of it is out of reach
        assume(scores.shapes[0].kv_groups > 1)
        raise
    assert bool(scores.means) == METHODS[method].compensates
    expected = masked_logits(model, tokens, plan)
    slimcore.prune_(model, plan)
    with torch.no_grad():
        assert close(model(tokens, use_cache=False).logits, expected)
    check_truth(model, plan)
    biased = [layer.mlp.down_proj.bias is not None for layer in model.model.layers]
    if method == "flap":
        assert all(biased[i] for i, w in plan.width.items() if w.down_means)


@settings(max_examples=30)
@given(st.data())
def test_two_plans_composed_are_both_in_turn(data):
    """Depth, then width, then width again: one plan that replays them, from its JSON too."""
    kwargs = {"layers": 4, "heads": 6, "kv_heads": 3, "bias": data.draw(st.booleans())}
    model, again = tiny(**kwargs), tiny(**kwargs)
    composed = None
    for depth in (True, False):
        plan = data.draw(width_plans(model, depth=depth))
        slimcore.prune_(model, plan)
        composed = plan if composed is None else composed.then(plan)
    slimcore.prune_(again, slimcore.Plan.from_dict(composed.as_dict()))
    with torch.no_grad():
        assert close(again(ids()).logits, model(ids()).logits)
    check_truth(again, composed)
    assert composed.parameters == slimcore.footprint(model).parameters


def test_a_composed_plan_names_its_steps_and_refuses_another_model():
    """Where each came from; a second plan made for the dense model does not follow."""
    model = tiny(layers=8)
    first = slimcore.select(slimcore.score(model, method="depth-magnitude"), layers=2, protect=(1, 1))
    with pytest.raises(PlanError, match="score the model it leaves"):
        first.then(slimcore.select(slimcore.score(model, ids(), method="flap"), ratio=0.2))
    slimcore.prune_(model, first)
    second = slimcore.select(slimcore.score(model, ids(), method="flap"), ratio=0.2)
    both = first.then(second)
    assert both.method == "depth-magnitude, then flap"
    assert [step.method for step in both.steps] == ["depth-magnitude", "flap"]
    assert both.steps[1].scored["tokens_sha256"]
    assert "2 of 8 layers go" in str(both)
    assert "KV groups" in str(both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 5}, "the plan is for 6 layers, the model has 5: score this model"),
        ({"kv_heads": 4}, r"the plan is for [\d,]+ parameters, the model has [\d,]+"),
        ({"heads": 6, "kv_heads": 6}, "parameters, the model has"),
    ],
)
def test_a_plan_of_another_model_is_refused_before_anything_is_cut(change, message):
    """With the first thing that differs."""
    plan = slimcore.select(slimcore.score(tiny(), ids(), method="flap"), ratio=0.2)
    other = tiny(**change)
    before = slimcore.footprint(other)
    with pytest.raises(PlanError, match=message):
        slimcore.prune_(other, plan)
    assert slimcore.footprint(other) == before


def test_a_class_of_ones_own_keeps_its_class():
    """Whole layers may go; a cut inside them, which its config could not tell, is refused before it is made."""
    model = tiny()
    own = type("MyLlama", (type(model),), {})
    model.__class__ = own
    slimcore.prune_(model, slimcore.select(slimcore.unscored(model, method="depth-ppl"), layers=1, protect=(0, 0)))
    assert type(model) is own
    plan = slimcore.select(slimcore.unscored(model, method="flap"), ratio=0.2)
    before = slimcore.footprint(model)
    with pytest.raises(UnsupportedModelError, match="MyLlama is not transformers' LlamaForCausalLM"):
        slimcore.prune_(model, plan)
    assert slimcore.footprint(model) == before


def test_equal_counts_are_not_taken_for_the_same_model():
    """A layer that lost channels where another plan's lost some elsewhere: same parameters, another shape."""
    model = tiny()
    scores = slimcore.unscored(model, method="magnitude")
    channels = tuple(range(30))
    every = tuple(range(6))
    one, other = (
        slimcore.Plan("x", scores.shapes, scores.total_parameters, every, {i: plan_width(channels)}) for i in (1, 2)
    )
    slimcore.prune_(model, one)
    next_plan = slimcore.Plan("x", other.after(), other.parameters, every, {0: plan_width((0, 1))})
    with pytest.raises(PlanError, match="a layer 1 of LayerShape"):
        slimcore.prune_(model, next_plan)


def plan_width(channels):
    """Both KV groups, and these channels."""
    return slimcore.plan.Width((0, 1), channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cut_alike(dtype):
    """Biases come in the weights' dtype; logits are finite and near those of the masked dense model."""
    model = tiny(dtype=dtype)
    plan = slimcore.select(slimcore.score(model, ids(), method="flap"), ratio=0.3)
    expected = masked_logits(tiny(dtype=dtype).float(), ids(), plan)
    slimcore.prune_(model, plan)
    assert {p.dtype for p in model.parameters()} == {dtype}
    with torch.no_grad():
        logits = model(ids()).logits.float()
    assert torch.isfinite(logits).all()
    assert (logits - expected).norm() < 0.1 * expected.norm()


@settings(max_examples=25)
@given(models_drawn(families=FAMILIES), st.floats(0.1, 0.6))
def test_cutting_what_has_no_effect_changes_nothing(model, share):
    """Channels whose column of down_proj is zero are cut by magnitude's elder, FLAP, first; logits stay."""
    tokens = ids(2, 9)
    count = int(40 * share)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, :count] = 0
    with torch.no_grad():
        before = model(tokens).logits
    scores = slimcore.score(model, tokens, method="wanda-sp")
    shape = scores.shapes[0]
    cut = len(scores.shapes) * count * shape.channel_parameters
    budget = {"params": scores.total_parameters - cut, "allocation": "UL-MM", "attention_ratio": 0.0}
    plan = slimcore.select(scores, **budget, protect=(0, 0))
    assert all(len(plan.inside(i).channels) == 40 - count for i in range(plan.num_layers))
    slimcore.prune_(model, plan)
    with torch.no_grad():
        assert close(model(tokens).logits, before)


def test_the_meta_device_counts_the_same_cut():
    """Without weights: the plan's parameters, the footprint, the class."""
    for method in WIDTH_METHODS:
        models = [tiny(), slimcore.models.random_model(tiny().config, dtype=torch.float32, device="meta")]
        plans = [slimcore.select(slimcore.unscored(m, method=method), ratio=0.3, protect=(1, 1)) for m in models]
        assert plans[0] == plans[1]
        for model, plan in zip(models, plans, strict=True):
            slimcore.prune_(model, plan)
        assert slimcore.footprint(models[0]) == slimcore.footprint(models[1])
        assert type(models[0]) is type(models[1])


def test_a_bias_makes_up_for_the_mean():
    """On the calibration tokens themselves FLAP's biases bring the pruned model nearer to the dense one."""
    tokens = ids(8, 16)
    dense = tiny(layers=4)
    plan = slimcore.select(slimcore.score(dense, tokens, method="flap"), ratio=0.2)
    bare = replace(plan, width={i: replace(w, o_means=(), down_means=()) for i, w in plan.width.items()})
    with torch.no_grad():
        expected = dense(tokens).logits
        errors = [(slimcore.prune_(tiny(layers=4), p)(tokens).logits - expected).norm() for p in (plan, bare)]
    assert errors[0] < errors[1]
