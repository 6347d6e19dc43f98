"""A depth-pruned model is the dense model that skips those layers, cached or not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimcore
from slimcore.errors import PlanError
from tests.helpers import decoded, ids, models_drawn, skipped_logits, tiny


def plan_keeping(model, kept):
    """The plan that removes everything but `kept`, by scores made for it."""
    scores = slimcore.unscored(model, method="depth-ppl")
    values = tuple(float(i in kept) for i in range(len(scores.values)))
    removed = len(values) - len(kept)
    return slimcore.select(replace(scores, values=values), layers=removed, protect=(0, 0))


@st.composite
def cuts(draw):
    """A model and a proper, non-empty subset of its layers."""
    model = draw(models_drawn())
    count = len(model.model.layers)
    kept = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    return model, kept


@given(cuts())
def test_pruned_equals_dense_with_layers_skipped(cut):
    """Equal logits; equal counts on plan and model; config and indices tell the truth."""
    model, kept = cut
    tokens = ids()
    expected = skipped_logits(model, tokens, kept)
    plan = plan_keeping(model, kept)
    assert plan.keep == tuple(sorted(kept))
    slimcore.prune_(model, plan)
    assert torch.equal(model(tokens, use_cache=False).logits, expected)
    assert slimcore.footprint(model).parameters == plan.parameters
    assert model.config.num_hidden_layers == len(kept) == len(model.model.layers)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(kept)))


@given(cuts(), st.integers(1, 4))
def test_cached_decoding_equals_the_uncached_forward(cut, windows):
    """`generate` with its cache gives the greedy tokens of plain forwards: no layer reads another's cache."""
    model, kept = cut
    slimcore.prune_(model, plan_keeping(model, kept))
    tokens = ids(windows, 7)
    logits, chosen = decoded(model, tokens, 6)
    # The chosen token is the greedy one, or as good as it within float error.
    assert torch.all(logits.max(-1).values - chosen < 1e-3)


def test_a_plan_of_another_model_is_refused_before_anything_is_cut():
    """Layers and parameters must both agree."""
    plan = plan_keeping(tiny(layers=6), {0, 1, 2})
    for other in (tiny(layers=5), tiny(layers=6, kv_heads=4)):
        before = slimcore.footprint(other)
        with pytest.raises(PlanError, match="score this model"):
            slimcore.prune_(other, plan)
        assert slimcore.footprint(other) == before
