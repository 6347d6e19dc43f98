"""The three depth criteria against plain references: one whole model run per layer, autograd, a sum."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimcore
from tests.helpers import ids, mean_nll, models_drawn, skipped_logits

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


@given(models_drawn(), st.integers(1, 5), st.integers(2, 20), st.integers(1, 6))
def test_ppl_equals_running_the_whole_model_without_each_layer(model, windows, length, batch_size):
    """Sharing the layers below the gap changes no score."""
    tokens = ids(windows, length)
    scores = slimcore.score(model, tokens, method="depth-ppl", batch_size=batch_size)
    count = len(model.model.layers)
    for gap, value in enumerate(scores.values):
        kept = set(range(count)) - {gap}
        assert math.log(value) == pytest.approx(float(mean_nll(skipped_logits(model, tokens, kept), tokens)), rel=1e-5)


@given(models_drawn(), st.integers(1, 5), st.integers(2, 20), st.integers(1, 6))
def test_taylor_equals_one_backward_pass(model, windows, length, batch_size):
    """Layer by layer and batch by batch, the gradient is the whole model's."""
    tokens = ids(windows, length)
    values = slimcore.score(model, tokens, method="depth-taylor", batch_size=batch_size).values
    assert values == pytest.approx(plain_taylor(model, tokens), rel=1e-3)


@given(models_drawn())
def test_magnitude_equals_the_sum_of_absolute_weights(model):
    """Seven projections and two norms; no bias."""
    expected = [
        sum(float(layer.get_submodule(n).weight.detach().abs().double().sum()) for n in SCORED)
        for layer in model.model.layers
    ]
    assert slimcore.score(model, method="depth-magnitude").values == pytest.approx(expected, rel=1e-6)


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
