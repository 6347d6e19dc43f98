"""What holds for every method: nothing is touched, half precision agrees, the same tokens give the same plan."""

import pytest
import torch

import slimcore
from slimcore.errors import PlanError, TextError, UnknownNameError, UnsupportedModelError
from slimcore.methods import METHODS
from slimcore.models import load_meta
from slimcore.scores import Scores
from tests.helpers import ids, tiny

EVERY = [(m.name, metric) for m in METHODS.values() for metric in m.metrics or (None,)]


def lists(scores):
    """Every list of values that are ranked against each other: those of one kind, in one layer where in layers."""
    return [scores.values] if scores.values else [v for w in scores.widths for v in (w.kv_groups, w.channels)]


@pytest.mark.parametrize(("method", "metric"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scoring_leaves_the_model_as_it_was(method, metric, dtype):
    """Weights, gradients, hooks, frozen parameters and training mode are untouched."""
    model = tiny(tied=True, dtype=dtype)
    model.train()
    frozen = model.model.layers[2].mlp.up_proj.weight.requires_grad_(requires_grad=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    layers = list(model.model.layers)
    slimcore.score(model, ids(), method=method, metric=metric)
    assert all(torch.equal(before[name], p) and p.dtype == dtype for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert list(model.model.layers) == layers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training
    assert not frozen.requires_grad
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("method", "metric"), EVERY)
def test_half_precision_copies_score_alike(method, metric):
    """fp16 and bf16 copies give finite scores, in the order of fp32 wherever two scores differ by more than 3 %."""

    def model(dtype):
        # Rounded once, so that the three hold the same numbers; and no two layers alike.
        made = tiny(layers=8, dtype=torch.bfloat16, seed=5)
        for index, layer in enumerate(made.model.layers):
            layer.mlp.up_proj.weight.data *= 1 + index / 2
        return made.to(dtype)

    reference = lists(slimcore.score(model(torch.float32), ids(6, 24), method=method, metric=metric, protect=(0, 0)))
    compared = 0
    for dtype in (torch.bfloat16, torch.float16):
        found = lists(slimcore.score(model(dtype), ids(6, 24), method=method, metric=metric, protect=(0, 0)))
        for values, expected in zip(found, reference, strict=True):
            # FLAP's are standardised, around zero: there the difference is taken as it is.
            apart = 0.03 if min(expected) < 0 else 0.03 * max(expected)
            for i, a in enumerate(expected):
                for j, b in enumerate(expected):
                    compared += a < b - apart
                    assert not (a < b - apart and values[i] >= values[j]), (dtype, i, j)
    assert compared > 30


@pytest.mark.parametrize(("method", "metric"), EVERY)
def test_same_tokens_give_the_same_plan_byte_for_byte(method, metric, tmp_path):
    """Scoring twice and writing twice gives equal files; what is read back is equal, and written again the same."""
    for name in ("a", "b"):
        scores = slimcore.score(tiny(), ids(), method=method, metric=metric, protect=(1, 1))
        slimcore.select(scores, ratio=0.35).save(tmp_path / name)
    plan = slimcore.Plan.load(tmp_path / "a")
    plan.save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert plan == slimcore.select(scores, ratio=0.35)


def test_a_seed_draws_at_random():
    """`random` repeats with its seed, and only then."""
    first, same, other = (
        slimcore.score(tiny(), method="llm-pruner", metric="random", seed=seed).widths for seed in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.parametrize(("method", "kind"), [("depth-magnitude", "values"), ("magnitude", "widths")])
def test_a_score_that_is_not_finite_is_an_error(method, kind):
    """NaN in a weight is told, with the layer; it does not sort somewhere."""
    model = tiny()
    assert getattr(slimcore.score(model, method=method), kind)
    model.model.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(PlanError, match=rf"{method} scored layers \[3\] as not finite"):
        slimcore.score(model, method=method)


def test_bad_input_is_told():
    """Tokens that are missing, a metric that is not there, a model without weights, heads that do not divide."""
    with pytest.raises(TextError, match="flap scores on calibration tokens"):
        slimcore.score(tiny(), method="flap")
    with pytest.raises(UnknownNameError, match=r"unknown metric of flap 'WIVF'; did you mean 'WIFV'"):
        slimcore.score(tiny(), ids(), method="flap", metric="WIVF")
    with pytest.raises(UnknownNameError, match=r"unknown metric of depth-ppl 'l1'"):
        slimcore.score(tiny(), ids(), method="depth-ppl", metric="l1")
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens.weight is on the meta device.*unscored"):
        slimcore.score(load_meta("tiny"), ids(), method="magnitude")
    model = tiny(heads=4, kv_heads=2)
    attention = model.model.layers[4].self_attn
    attention.q_proj = torch.nn.Linear(32, 24)
    with pytest.raises(UnsupportedModelError, match=r"layer 4 has 3 query heads for 2 KV heads of 8.*divide evenly"):
        slimcore.score(model, ids(), method="llm-pruner")
    with pytest.raises(PlanError, match="one value a layer, or the widths"):
        Scores("x", slimcore.unscored(tiny(), method="flap").shapes, 1)
