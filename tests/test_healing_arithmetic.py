"""Healing in half precision, and over two devices: what float32 on one gives."""

import pytest
import torch

from slimcore import trial
from slimcore.plan import Width
from slimcore.refits import find
from slimcore.structure import DOWN, OUT, decoder, projection
from tests.devices import Devices
from tests.healed import TOKENS, changes, heal, plan_of
from tests.helpers import tiny


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_fitted_in_single(dtype):
    """The same weights as of the float32 copy, but for rounding: stored in half precision, and computed with in it."""
    half, whole, computed = tiny(layers=6, dtype=dtype), tiny(layers=6), tiny(layers=6)
    for model in (whole, computed):
        for a, b in zip(model.parameters(), half.parameters(), strict=True):
            a.data = b.data.float()
    plans = [heal(half, plan_of(half, (0, 1, 4, 5))), heal(whole, plan_of(whole, (0, 1, 4, 5)))]
    plans.append(heal(computed, plan_of(computed, (0, 1, 4, 5)), arithmetic=dtype))
    mine, exact, other = (projection(m.model.layers[1], DOWN).weight for m in (half, whole, computed))
    assert (mine.dtype, other.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(mine.float(), exact, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(other, exact, rtol=5e-2, atol=5e-2)
    assert not other.equal(exact)
    left = [changes(plan)["error_left"][f"1.{DOWN}"] for plan in plans]
    assert left == pytest.approx([left[1]] * 3, abs=1e-2)


def test_hidden_states_whose_squares_float16_cannot_hold_are_healed():
    """Norms are taken in float32: states of some thousands, as LLaMA has, give what float32 gives."""
    models = [tiny(layers=6) for _ in range(2)]
    for model in models:
        model.model.embed_tokens.weight.data *= 2000
        for layer in model.model.layers:
            for name in (OUT, DOWN):
                projection(layer, name).weight.data *= 200
    plans = [
        heal(model, plan_of(model, (0, 1, 4, 5)), arithmetic=dtype)
        for model, dtype in zip(models, (torch.float16, torch.float32), strict=True)
    ]
    assert models[1].model(TOKENS.ids, output_hidden_states=True).hidden_states[2].abs().max() > 1000
    half, whole = (projection(model.model.layers[1], DOWN).weight.detach() for model in models)
    torch.testing.assert_close(half, whole, rtol=5e-2, atol=5e-2 * float(whole.abs().max()))
    assert changes(plans[0])["error_left"] == pytest.approx(changes(plans[1])["error_left"], abs=1e-2)


@torch.no_grad()
def test_a_gap_that_spans_devices_is_healed_as_on_one():
    """The layer before it on one device, the dense states after it on another; with a layer cut inside beside it."""
    here, spread = tiny(layers=6), tiny(layers=6)
    plan = plan_of(here, (0, 1, 4, 5), {1: Width((0,), tuple(range(20))), 4: Width((1,), tuple(range(9)))})
    devices = Devices()
    for index, layer in enumerate(spread.model.layers):
        devices.place_(layer, "cuda:0" if index < 3 else "cuda:1")
    devices.place_(spread.model.norm, "cuda:1")
    folds, held, shares = [[TOKENS.ids[:8]], [TOKENS.ids[8:]]], {"a": [TOKENS.ids]}, (0.0, 1.0)
    expected = find(decoder(here), plan, folds, torch.float32)
    perplexities = trial.perplexities(decoder(here), plan, expected, held, shares, torch.float32)
    with devices:
        found = find(decoder(spread), plan, folds, torch.float32)
        assert trial.perplexities(decoder(spread), plan, found, held, shares, torch.float32) == perplexities
        assert [str(devices.of(refit.change)) for refit in found] == ["cuda:0"] * 2 + ["cuda:1"] * 2
        with pytest.raises(RuntimeError, match="different devices"):
            found[0].change @ found[2].change.T
    for mine, other in zip(found, expected, strict=True):
        assert (mine.name, mine.ridge, mine.left) == (other.name, other.ridge, other.left)
        assert torch.equal(mine.change, other.change)
