"""Arithmetic in float16 and bfloat16, on a CPU too: right where it can be, one clear line where it cannot."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore.errors import UnknownNameError, UnsupportedModelError
from slimcore.kept import others, owned
from slimcore.methods import METHODS
from slimcore.structure import DOWN, OUT, UP, VALUE, projection
from tests.helpers import ids, masked_logits, skipped_logits, tiny, width_plans

HALVES = (torch.float16, torch.bfloat16)
EVERY = [(m.name, metric) for m in METHODS.values() for metric in m.metrics or (None,)]
RUN_FORWARD = [(name, metric) for name, metric in EVERY if name in ("depth-ppl", "flap", "wanda-sp")]
IN_FLOAT32 = [case for case in EVERY if case not in RUN_FORWARD]
ON_TOKENS = [(name, metric) for name, metric in EVERY if METHODS[name].needs_tokens(metric)]

LAYERS = 6
ROUNDINGS = 12  # of a hidden state in one layer: two norms, seven products, a gate, two sums


def uneven(dtype, seed=0):
    """A model in `dtype` whose layers differ in weight."""
    model = tiny(layers=LAYERS, dtype=dtype, seed=seed)
    for index, layer in enumerate(model.model.layers):
        layer.mlp.up_proj.weight.data *= 1 + index
    return model


def score(model, method, metric=None, dtype=None, **options):
    """Scores of every layer, computed in `dtype`."""
    return slimcore.score(model, ids(6, 24), method=method, metric=metric, protect=(0, 0), arithmetic=dtype, **options)


def log_perplexity(model, dtype=None, **options):
    """Mean loss on the same tokens."""
    return math.log(slimcore.perplexity(model, ids(6, 24), arithmetic=dtype, **options).value)


def numbers(scores):
    """Tensors of values that are ranked against each other, by what they are of; perplexities by their logarithm."""
    if scores.values:
        values = torch.tensor(scores.values, dtype=torch.float64)
        return [("layers", values.log() if scores.method == "depth-ppl" else values)]
    return [
        (kind, torch.tensor(getattr(w, kind), dtype=torch.float64))
        for w in scores.widths
        for kind in ("kv_groups", "channels")
    ]


def rounding(dtype, kind):
    """How far a value may move where all the roundings on its way err alike, by half a unit each.

    Independent ones shrink with the root of what a mean is taken over: 16 inputs of a KV group, more predictions.
    """
    return ROUNDINGS * LAYERS * torch.finfo(dtype).eps / 2 / (1 if kind == "channels" else 4)


def assert_near(expected, found, dtype):
    """Scores within rounding of `dtype`; and how many pairs lie further apart, all in the same order."""
    pairs = 0
    for (kind, a), (_, b) in zip(numbers(expected), numbers(found), strict=True):
        # In proportion to the value; a logarithm's is 1, and FLAP's lie around their mean, in standard deviations.
        size = {"depth-ppl": torch.ones_like(a), "wanda-sp": a, "flap": 1 + a.abs()}[expected.method]
        allowed = rounding(dtype, kind) * size
        assert (b - a).abs().le(allowed).all(), (kind, ((b - a).abs() / allowed).max())
        apart = (a + allowed)[:, None] < (a - allowed)[None]
        assert (b[:, None] < b[None])[apart].all()
        pairs += int(apart.sum())
    return pairs


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("method", "metric"), RUN_FORWARD)
def test_scores_are_near_those_of_float32_and_in_their_order(method, metric, dtype):
    """By no more than rounding can explain, finite, and in the same order wherever two differ by more than that."""
    model = uneven(dtype)
    assert assert_near(score(model, method, metric), score(model, method, metric, dtype), dtype) >= 5


@pytest.mark.parametrize("dtype", HALVES)
def test_perplexity_is_near_that_of_float32(dtype):
    """By no more than rounding can explain."""
    model = uneven(dtype)
    assert log_perplexity(model, dtype) == pytest.approx(log_perplexity(model), abs=rounding(dtype, "layers"), rel=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("method", "metric"), [("depth-ppl", None), ("flap", "WIFV"), ("wanda-sp", None)])
def test_batches_change_no_more_than_rounding(method, metric, dtype):
    """One window at once, or four, against all six."""
    model = uneven(dtype, seed=1)
    expected, loss = score(model, method, metric, dtype, batch_size=6), log_perplexity(model, dtype, batch_size=6)
    for batch_size in (1, 4):
        assert_near(expected, score(model, method, metric, dtype, batch_size=batch_size), dtype)
        assert abs(log_perplexity(model, dtype, batch_size=batch_size) - loss) < rounding(dtype, "layers")


# The same function in other units: with factors of two only exponents differ.


def scaled_inside(model, factor):
    """The same model, with `factor` times the inputs of both output projections."""
    for layer in model.model.layers:
        for before, after in ((VALUE, OUT), (UP, DOWN)):
            weight = projection(layer, after).weight.data
            weight.copy_((weight * 256).round() / 256)  # few enough digits to be divided
            projection(layer, before).weight.data.mul_(factor)
            weight.div_(factor)
    return model


def scaled_between(model, factor):
    """The same model, with `factor` times the hidden states between layers."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0
    model.model.embed_tokens.weight.data.mul_(factor)
    for layer in model.model.layers:
        for name in (OUT, DOWN):
            projection(layer, name).weight.data.mul_(factor)
    return model


@pytest.mark.parametrize("scaled", [scaled_inside, scaled_between])
@pytest.mark.parametrize(("method", "metric"), ON_TOKENS)
def test_values_whose_squares_overflow_change_no_score(method, metric, scaled):
    """Values of hundreds and thousands in float16: what is the same function has the same scores."""
    small, large = (scaled(tiny(layers=4, seed=3, dtype=torch.float16), factor) for factor in (1, 1024))
    seen = []
    for layer in large.model.layers:
        part = projection(layer, DOWN) if scaled is scaled_inside else layer
        part.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].detach().abs().max()))
    expected, found = (numbers(score(model, method, metric, torch.float16)) for model in (small, large))
    assert 300 < max(seen) < 65504
    # Wanda's unit is that of the weights that write to the hidden states.
    unit = 1024 if method == "wanda-sp" and scaled is scaled_between else 1
    for (_, a), (_, b) in zip(expected, found, strict=True):
        assert torch.allclose(a * unit, b, rtol=1e-4, atol=1e-6 * unit)


# What has no value.


def too_large(layer, part=DOWN):
    """A model in float16 in which one layer computes values of some 10^5, with weights below 65,504."""
    model = tiny(layers=LAYERS, dtype=torch.float16)
    projection(model.model.layers[layer], part).weight.data *= 30000
    return model


USES = {
    "perplexity": lambda model, dtype: slimcore.perplexity(model, ids(), batch_size=2, arithmetic=dtype),
    **{
        f"{name}-{metric}": lambda model, dtype, n=name, m=metric: score(model, n, m, dtype)
        for name, metric in RUN_FORWARD
    },
}


@pytest.mark.parametrize(("layer", "part"), [(0, DOWN), (3, UP), (LAYERS - 1, DOWN)])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_float16_cannot_hold_is_refused(use, layer, part):
    """The layer, the dtype and what to do, in one line; the model is as it was, and bfloat16 gives a result."""
    model = too_large(layer, part)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UnsupportedModelError) as refused:
        use(model, torch.float16)
    assert str(refused.value) == (
        f"layer {layer} computes values beyond 65,504, the largest of float16: load the model in bfloat16 or float32"
    )
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    use(model, torch.bfloat16)


@pytest.mark.parametrize(("method", "metric"), IN_FLOAT32)
def test_gradients_and_magnitudes_are_float32_in_any_case(method, metric):
    """Where gradients underflow in half precision and hidden states overflow: the same scores, and finite."""
    model = too_large(3)
    found = score(model, method, metric, torch.float16)
    expected = score(model, method, metric)
    assert (found.values, found.widths) == (expected.values, expected.widths)
    assert all(values.isfinite().all() for _, values in numbers(found))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("model.layers.2.mlp.down_proj", "layer 2's mlp.down_proj.weight"),
        ("model.embed_tokens", "the embedding's weight"),
        ("model.norm", "the final norm's weight"),
        ("lm_head", "the head's weight"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(place, told):
    """By perplexity and by what scores on tokens: no number comes out of NaN, and it is not infinity."""
    model, tokens = tiny(), ids(6, 24)
    model.get_submodule(place).weight.data[..., 0] = torch.nan
    methods = ["depth-ppl", "depth-taylor", "llm-pruner"]
    methods += ["flap", "wanda-sp"] if place.startswith("model.layers") else []
    for use in (
        lambda: slimcore.perplexity(model, tokens),
        *(lambda n=n: score(model, n) for n in methods),
    ):
        with pytest.raises(UnsupportedModelError, match=f"^{told} holds values that are not finite"):
            use()


# The cut.


def rms(values):
    """Root of the mean square."""
    return float(values.double().square().mean().sqrt())


def output_projections(plan):
    """Layer, projection, inputs that `plan` cuts, and their means, of each that loses any."""
    for index, width in plan.width.items():
        shape = plan.shapes[index]
        for name, kept, size, each, means in (
            (OUT, width.kv_groups, shape.kv_groups, shape.group_inputs, width.o_means),
            (DOWN, width.channels, shape.channels, 1, width.down_means),
        ):
            if len(kept) < size:
                yield index, name, list(owned(others(kept, size), each)), means


def masked_in_half(model, plan):
    """Logits of `model`, computed in its dtype, with what `plan` cuts set to its mean, or to zero, where it is read."""
    hooks = []
    for index, name, gone, means in output_projections(plan):
        value = torch.tensor(means or [0.0] * len(gone), dtype=model.dtype)

        def mask(_module, arguments, gone=gone, value=value):
            hidden = arguments[0].clone()
            hidden[..., gone] = value
            return (hidden,)

        hooks.append(projection(model.model.layers[index], name).register_forward_pre_hook(mask))
    logits = skipped_logits(model, ids(), plan.keep)
    for hook in hooks:
        hook.remove()
    return logits


@settings(max_examples=20)
@given(st.data(), st.sampled_from(HALVES))
def test_a_cut_computes_what_the_masked_model_computes(data, dtype):
    """In half precision: the cut comes as near as the masked model to the masked one in float32, with means or not."""
    model = tiny(layers=4, bias=data.draw(st.booleans()), seed=data.draw(st.integers(0, 9)), dtype=dtype)
    plan = data.draw(width_plans(model, depth=True))
    masked = masked_in_half(model, plan)
    exact = masked_logits(model.float(), ids(), plan)
    slimcore.prune_(model.to(dtype), plan)
    with torch.no_grad():
        logits = model(ids(), use_cache=False).logits
    assert logits.dtype == dtype
    # Two runs err independently, and a bias in place of means is rounded once more.
    assert rms(logits - exact) < 2 * rms(masked - exact) + torch.finfo(dtype).eps * rms(exact)


@pytest.mark.parametrize("dtype", HALVES)
def test_flaps_biases_are_rounded_once(dtype):
    """Weights times means, and the bias that was there, are summed in float32 or wider and rounded to their dtype."""
    model, dense = tiny(bias=True, dtype=dtype), tiny(bias=True, dtype=dtype)
    plan = slimcore.select(score(model, "flap", "WIFV", dtype), ratio=0.3)
    slimcore.prune_(model, plan)
    for index, name, gone, means in output_projections(plan):
        after, before = (projection(m.model.layers[index], name) for m in (model, dense))
        parts = before.weight[:, gone].double() * torch.tensor(means, dtype=torch.float64)
        exact = parts.sum(1) + before.bias.double()
        allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5 * (parts.abs().sum(1) + before.bias.double().abs())
        assert after.bias.dtype == dtype
        assert (after.bias.double() - exact).abs().le(allowed).all()


# The parameter.


def test_the_arithmetic_is_recorded_where_it_is_not_the_default():
    """On a CPU that is float32; a plan carries it."""
    model = tiny(dtype=torch.bfloat16)
    for asked, recorded in ((None, None), (torch.float32, None), (torch.bfloat16, "bfloat16")):
        scores = score(model, "wanda-sp", None, asked)
        assert scores.provenance.get("arithmetic") == recorded
        assert slimcore.select(scores, ratio=0.3).steps[0].scored.get("arithmetic") == recorded


@pytest.mark.parametrize("asked", ["float16", torch.int8, torch.float64])
def test_another_arithmetic_is_refused(asked):
    """What there is, in one line."""
    for use in (
        lambda: score(tiny(), "flap", None, asked),
        lambda: slimcore.perplexity(tiny(), ids(), arithmetic=asked),
    ):
        with pytest.raises(UnknownNameError, match=r"unknown arithmetic .*known: torch.bfloat16, torch.float16"):
            use()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("method", "metric"), RUN_FORWARD)
def test_a_cuda_device_computes_alike(method, metric, dtype):
    """Its default is the weights' dtype: scores and perplexity are a CPU's in that arithmetic, within rounding."""
    here, there = uneven(dtype), uneven(dtype).to("cuda")
    assert_near(score(here, method, metric, dtype), score(there, method, metric), dtype)
    assert abs(log_perplexity(here, dtype) - log_perplexity(there)) < rounding(dtype, "layers")
