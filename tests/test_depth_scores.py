"""The three depth criteria against plain references: one whole model run per layer, autograd, a sum."""

import math
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore import layerwise
from slimcore.errors import UnsupportedModelError
from tests.helpers import ids, mean_nll, models_drawn, skipped_logits, tiny

ARITHMETICS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])

SCORED = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


def plain_taylor(model, tokens):
    """Sum of |weight x gradient| by one backward pass through the whole model."""
    model.zero_grad()
    logits = model(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    weights = [[layer.get_submodule(n).weight for n in SCORED] for layer in model.model.layers]
    values = [sum(float((w.detach() * w.grad).abs().sum()) for w in layer) for layer in weights]
    model.zero_grad()
    return values


@torch.no_grad()
def plain_nll(model, tokens, kept):
    """Mean NLL of the model with the layers `kept`: its own last hidden states, in its own dtype, and float64 after."""
    states = []
    hook = model.model.norm.register_forward_hook(lambda _m, _a, out: states.append(out.double()))
    skipped_logits(model, tokens, kept)
    hook.remove()
    return float(mean_nll(states[0] @ model.lm_head.weight.double().T, tokens))


@settings(max_examples=70)
@given(models_drawn(), st.integers(1, 5), st.integers(2, 20), st.integers(1, 6), ARITHMETICS)
def test_ppl_equals_running_the_whole_model_without_each_layer(model, windows, length, batch_size, dtype):
    """Sharing the layers below the gap changes no score; nor the whole model's perplexity; nor in half precision."""
    model, tokens, count = model.to(dtype), ids(windows, length), len(model.model.layers)
    # Other batches round otherwise, in half precision by more than is allowed here.
    options = {"batch_size": batch_size if dtype == torch.float32 else windows, "arithmetic": dtype}
    scores = slimcore.score(model, tokens, method="depth-ppl", **options)
    for gap, value in enumerate(scores.values):
        expected = plain_nll(model, tokens, set(range(count)) - {gap})
        assert math.log(value) == pytest.approx(expected, rel=1e-5)
    whole = slimcore.perplexity(model, tokens, **options).value
    assert math.log(whole) == pytest.approx(plain_nll(model, tokens, range(count)), rel=1e-5)


@settings(max_examples=60)
@given(models_drawn(), st.integers(1, 5), st.integers(2, 20), st.integers(1, 6))
def test_taylor_equals_one_backward_pass(model, windows, length, batch_size):
    """Layer by layer and batch by batch, the gradient is the whole model's."""
    tokens = ids(windows, length)
    values = slimcore.score(model, tokens, method="depth-taylor", batch_size=batch_size).values
    assert values == pytest.approx(plain_taylor(model, tokens), rel=1e-3)


@settings(max_examples=50)
@given(models_drawn())
def test_magnitude_equals_the_sum_of_absolute_weights(model):
    """Seven projections and two norms; no bias."""
    expected = [
        sum(float(layer.get_submodule(n).weight.detach().abs().double().sum()) for n in SCORED)
        for layer in model.model.layers
    ]
    assert slimcore.score(model, method="depth-magnitude").values == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60)
@given(models_drawn(min_layers=3), st.data())
def test_a_layer_without_effect_is_the_first_to_go(model, data):
    """With its two output projections zeroed a layer passes its input on: its PPL is the dense model's."""
    index = data.draw(st.integers(0, len(model.model.layers) - 1))
    layer = model.model.layers[index]
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        for parameter in projection.parameters():
            parameter.data.zero_()
    tokens = ids(2, 16)
    before = model(tokens, use_cache=False).logits.detach()
    values = slimcore.score(model, tokens, method="depth-ppl").values
    assert math.log(values[index]) == pytest.approx(float(mean_nll(before, tokens)), rel=1e-5)
    kept = [i for i in range(len(values)) if i != index]
    assert torch.allclose(skipped_logits(model, tokens, kept), before, rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(ARITHMETICS, st.integers(1, 40), st.integers(2, 70), st.floats(0.01, 3000), st.integers(0, 99))
def test_next_token_losses_are_those_of_float64(dtype, block, vocabulary, scale, seed):
    """Block by block of the vocabulary, logits from nothing to beyond 65,504, as torch.logsumexp; none below zero."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(2, 5, 16, generator=generator) * 4).to(dtype)
    weight = (torch.randn(vocabulary, 16, generator=generator) * scale).to(dtype)
    tokens = torch.randint(vocabulary, (2, 5), generator=generator)
    view = SimpleNamespace(norm=torch.nn.Identity(), head=SimpleNamespace(weight=weight))
    with patch.object(layerwise, "VOCABULARY_BLOCK", block):
        found = layerwise.next_token_nll(view, hidden, tokens).double()
    states, rows = hidden[:, :-1].double(), weight.double()
    logits = states @ rows.T
    expected = torch.logsumexp(logits, -1) - logits.gather(-1, tokens[:, 1:, None])[..., 0]
    # Two sums of 16 products, of up to 70 exponentials, and eight roundings of what comes out: all in float32.
    largest = float((states.abs() @ rows.abs().T).max())
    allowed = torch.finfo(torch.float32).eps / 2 * (2 * (16 + 8) * largest + 2 * vocabulary)
    assert (found - expected).abs().max() <= allowed
    assert found.min() >= -allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_perplexity_beyond_floats_is_infinite_and_ranks_nothing(dtype):
    """Head times 10^4: infinite is true of one perplexity; as scores they would all be equal, so they are refused."""
    model = tiny(dtype=dtype)
    model.lm_head.weight.data *= 10000
    assert slimcore.perplexity(model, ids(), arithmetic=dtype).value == math.inf
    with pytest.raises(
        UnsupportedModelError, match=r"without layer 0 the mean loss is [\d,]+ nats a token.*beyond any"
    ):
        slimcore.score(model, ids(), method="depth-ppl", arithmetic=dtype)
    assert all(map(math.isfinite, slimcore.score(model, ids(), method="depth-taylor", arithmetic=dtype).values))


def test_a_layer_that_keeps_the_others_within_float16_is_named():
    """Hidden states of 50,000 that the next layer takes away again: without it they add up."""
    model = tiny(bias=True, dtype=torch.float16)
    for index, value in ((1, 50000), (2, -50000), (3, 50000)):
        model.model.layers[index].mlp.down_proj.bias.data[0] = value
    assert slimcore.perplexity(model, ids(), arithmetic=torch.float16).value > 1
    with pytest.raises(UnsupportedModelError, match=r"^without layer 2, layer 3 computes values beyond 65,504"):
        slimcore.score(model, ids(), method="depth-ppl", arithmetic=torch.float16)
