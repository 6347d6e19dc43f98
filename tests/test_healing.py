"""Healing: the refit against its normal equations, on the pruned model's own states; what it must not change."""

import copy
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore import healing
from slimcore.errors import PlanError, TextError, UnsupportedModelError
from slimcore.plan import Width
from slimcore.structure import DOWN, FAMILIES, NORMS, OUT, projection
from tests.helpers import ids, in_a_fresh_process, models_drawn, tiny, width_plans

TOKENS = ids(windows=12, length=16, seed=1)


def plan_of(model, keep, width=None):
    """A plan that keeps these layers."""
    shapes = slimcore.unscored(model, method="flap").shapes
    return slimcore.Plan("drawn", shapes, sum(p.numel() for p in model.parameters()), tuple(keep), width or {})


def heal(model, plan, tokens=TOKENS, *, perplexities=(2.0, 1.0)):
    """heal_, where perplexity before and after is this: weights drawn at random know nothing of the tokens."""
    with patch.object(healing, "perplexity", side_effect=[SimpleNamespace(value=value) for value in perplexities]):
        return slimcore.heal_(model, plan, tokens)


@torch.no_grad()
def seen(model, places):
    """Float64 rows of what each (layer, part) is given; part None: the layer's output."""
    found, hooks = {}, []

    def note(place, value):
        found[place] = (value[0] if isinstance(value, tuple) else value).flatten(0, 1).double()

    for index, part in places:
        layer = model.model.layers[index]
        if part is None:
            hooks.append(layer.register_forward_hook(lambda _m, _a, out, p=(index, part): note(p, out)))
        else:
            module = layer.get_submodule(part)
            hooks.append(module.register_forward_pre_hook(lambda _m, args, p=(index, part): note(p, args)))
    model(TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def assert_fitted(dense, healed, plan, layer, name, target):
    """The normal equations: X^T V (d - h) = ridge (W_healed - W_cut), with X and h of the healed model itself.

    V: 1 / |d|^2 of each token.
    """
    place = (plan.keep.index(layer), None if name == DOWN else NORMS[1])
    here = seen(healed, [(place[0], name), place])
    x, h = here[place[0], name], here[place]
    d = seen(dense, [target])[target]
    cut = copy.deepcopy(dense)
    slimcore.prune_(cut, plan)
    before, after = (projection(m.model.layers[plan.keep.index(layer)], name).weight.double().T for m in (cut, healed))
    weighted = x.T / d.square().sum(1)
    ridge = healing.RIDGE * (weighted @ x).diagonal().mean()
    change = ridge * (after - before)
    torch.testing.assert_close(weighted @ (d - h), change, rtol=2e-3, atol=2e-3 * float(change.abs().max() + 1e-3))


@settings(max_examples=25)
@given(data=st.data(), model=models_drawn(min_layers=4, families=FAMILIES))
def test_each_gap_is_fitted_on_what_the_healed_model_computes(data, model):
    """Over families, biases, tied embeddings and gaps: also the second, whose inputs the first one's refit moved."""
    count = len(model.model.layers)
    removed = data.draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=count - 1))
    plan = plan_of(model, [i for i in range(count) if i not in removed])
    healed, pruned = copy.deepcopy(model), copy.deepcopy(model)
    heal(healed, plan)
    slimcore.prune_(pruned, plan)
    before_gaps = {i for i in plan.keep if i + 1 in removed}
    for layer in before_gaps:
        end = max(i for i in removed if set(range(layer + 1, i + 1)) <= removed)
        assert_fitted(model, healed, plan, layer, DOWN, (end, None))
    # Nothing else differs from the plan without healing: not a parameter more, and no other weight.
    assert healed.config.to_dict() == pruned.config.to_dict()
    changed = {
        name for (name, p), q in zip(healed.named_parameters(), pruned.parameters(), strict=True) if not p.equal(q)
    }
    assert changed == {f"model.layers.{plan.keep.index(i)}.{DOWN}.weight" for i in before_gaps}
    assert slimcore.footprint(healed) == slimcore.footprint(pruned)


@settings(max_examples=15)
@given(data=st.data())
def test_widths_are_fitted_to_the_dense_layers(data):
    """Both output projections, each on the healed model's own states; with FLAP's biases, and with gaps beside."""
    model = tiny(layers=5, seed=data.draw(st.integers(0, 9)), bias=data.draw(st.booleans()))
    plan = data.draw(width_plans(model, depth=True))
    if 0 in plan.removed:
        return
    healed = copy.deepcopy(model)
    heal(healed, plan)
    for layer in plan.width:
        assert_fitted(model, healed, plan, layer, OUT, (layer, NORMS[1]))
        end = max(i for i in range(5) if set(range(layer + 1, i + 1)) <= set(plan.removed) and i >= layer)
        assert_fitted(model, healed, plan, layer, DOWN, (end, None))


def test_the_refit_is_that_of_lstsq():
    """Ridge regression as least squares over the rows and, below them, the ridge's own."""
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (7, 3))
    change, less = healing.solve(x.T @ x, x.T @ e)
    ridge = healing.RIDGE * (x.T @ x).diagonal().mean()
    rows = torch.cat([x, ridge.sqrt() * torch.eye(7, dtype=x.dtype)])
    expected = torch.linalg.lstsq(rows, torch.cat([e, torch.zeros(7, 3, dtype=x.dtype)])).solution
    torch.testing.assert_close(change, expected)
    assert less == pytest.approx(float(e.square().sum() - (e - x @ change).square().sum()))
    assert healing.solve(torch.zeros(7, 7).double(), torch.zeros(7, 3).double())[0].count_nonzero() == 0


@pytest.mark.parametrize("bias", [False, True])
def test_a_gap_that_did_nothing_stays_as_it_was(bias):
    """Layers that add nothing leave nothing to fit."""
    model = tiny(layers=6, bias=bias)
    for index in (2, 3):
        for name in (OUT, DOWN):
            for parameter in projection(model.model.layers[index], name).parameters():
                parameter.data.zero_()
    dense = copy.deepcopy(model)
    plan = heal(model, plan_of(model, (0, 1, 4, 5)))
    torch.testing.assert_close(model(ids()).logits, dense(ids()).logits, rtol=1e-4, atol=1e-4)
    weights = [projection(m.model.layers[1], DOWN).weight for m in (model, dense)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert plan.keep == (0, 1, 4, 5)


def test_the_plan_tells_of_it(tmp_path):
    """Text, windows and what is left of the error are saved with the plan, said in print, and forgotten on purpose."""
    model = tiny(layers=6)
    plan = heal(model, plan_of(model, (0, 1, 4, 5)))
    slimcore.save(model, tmp_path / "healed", plan=plan)
    read = slimcore.Plan.load(tmp_path / "healed" / "slimcore_plan.json")
    assert read == plan
    assert list(read.steps[0].healed["error_left"]) == [f"1.{DOWN}"]
    assert 0 < read.steps[0].healed["error_left"][f"1.{DOWN}"] < 1
    assert "healed      perplexity on given 2 -> 1\n" in str(read) + "\n"
    assert not read.unhealed().steps[0].healed
    assert torch.equal(in_a_fresh_process(tmp_path / "healed", tmp_path), model(ids()).logits)


def test_what_would_only_get_worse_is_cut_and_not_healed():
    """And the plan says so; so it does where it is not a number."""
    for after, said in ((3.0, "3"), (float("nan"), "not finite")):
        model, cut = tiny(layers=6), tiny(layers=6)
        plan = heal(model, plan_of(model, (0, 1, 4, 5)), perplexities=(2.0, after))
        slimcore.prune_(cut, plan)
        assert torch.equal(model(ids()).logits, cut(ids()).logits)
        assert f"healed      perplexity on given 2 -> {said}: no, it would rise" in str(plan)
        assert not plan.steps[0].healed["kept"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_fitted_in_single(dtype):
    """The same weights as of the float32 copy, but for rounding."""
    half, whole = tiny(layers=6, dtype=dtype), tiny(layers=6)
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        a.data = b.data.float()
    for model in (half, whole):
        heal(model, plan_of(model, (0, 1, 4, 5)))
    mine, exact = (projection(m.model.layers[1], DOWN).weight for m in (half, whole))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.float(), exact, rtol=5e-2, atol=5e-2)


def _overflowing():
    model = tiny(layers=6)
    projection(model.model.layers[1], "mlp.up_proj").weight.data.fill_(3e38)
    return model


@pytest.mark.parametrize(
    ("model", "keep", "width", "tokens", "error", "words"),
    [
        (tiny(), range(6), None, TOKENS, PlanError, "nothing to heal"),
        (tiny(), (1, 2, 3, 4, 5), None, TOKENS, PlanError, "the first layer goes"),
        (tiny(layers=7), (0, 1, 5), None, TOKENS, PlanError, "the plan is for 6 layers, the model has 7"),
        (tiny(), (0, 1, 5), None, TOKENS[:2], TextError, "40 inputs.*got 2 windows of 16, ask for at least 3"),
        (tiny(), (0, 1, 5), None, TOKENS + 256, TextError, "token ids must lie within"),
        (_overflowing(), (0, 1, 5), None, TOKENS, UnsupportedModelError, "layer 1 computes values that are not finite"),
        (_overflowing(), range(6), {1: Width((0,), (0, 1, 2))}, TOKENS, UnsupportedModelError, "not finite"),
    ],
)
def test_what_cannot_be_healed_is_left_alone(model, keep, width, tokens, error, words):
    """One line that says what is wrong, and a model that is what it was."""
    before = copy.deepcopy(model).state_dict()
    plan = plan_of(tiny(), keep, width)
    with pytest.raises(error, match=words):
        slimcore.heal_(model, plan, tokens)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_from_the_command_line(run, tmp_path, tokenizer, prose, monkeypatch):
    """Cut and healed, opened by stock transformers; replayed without healing; a text seen before is named."""
    folder, out = slimcore.save(tiny(layers=8), tmp_path / "model", tokenizer=tokenizer), tmp_path / "healed"
    fallen = iter((2.0, 1.0))
    monkeypatch.setattr(healing, "perplexity", lambda *_: SimpleNamespace(value=next(fallen)))
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, with other words. " * 200)
    cut = ("--layers", 2, "--protect", "1,1", "--samples", 4, "--length", 32)
    code, printed, err = run("prune", folder, "--out", out, *cut, "--heal", "--heal-samples", 20,
                             "--text", prose, "--text", other)  # fmt: skip
    assert (code, err) == (0, "")
    assert "healed      perplexity on prose.txt + other.txt " in printed
    plan = slimcore.Plan.load(out / "slimcore_plan.json")
    assert plan.steps[0].healed["windows"] == [20, 32]
    code, _, err = run("prune", folder, "--out", tmp_path / "x", *cut, "--heal", "--text", other)
    assert code == 2
    assert "other.txt gives 237 windows of 32 tokens, 320 were asked" in err
    healed = in_a_fresh_process(out, tmp_path)
    assert run("prune", folder, "--plan", out / "slimcore_plan.json", "--out", tmp_path / "cut")[0] == 0
    assert not slimcore.Plan.load(tmp_path / "cut" / "slimcore_plan.json").steps[0].healed
    assert not torch.equal(slimcore.load(tmp_path / "cut")[0](ids()).logits, healed)
    for text, warned in ((prose, True), (other, True), ("python-topics", False)):
        code, _, err = run("eval", out, "--text", text, "--limit", 512)
        assert code == 0
        assert (f"warning: {text.name if warned else ''} is what the model was calibrated on" in err) == warned


def test_several_texts_give_equal_shares(tokenizer, prose, tmp_path):
    """And one text alone gives what it gave before."""
    other = tmp_path / "other.txt"
    other.write_text("0123456789" * 400)
    both = slimcore.calibration_tokens(tokenizer, samples=5, length=32, source=[prose, other])
    alone = slimcore.calibration_tokens(tokenizer, samples=3, length=32, source=prose)
    assert torch.equal(both.ids[:3], alone.ids)
    assert tokenizer.decode(both.ids[3]).isdigit()
    assert (both.text, len(both.text_sha256.split(" + "))) == ("prose.txt + other.txt", 2)
    with pytest.raises(TextError, match="2 windows cannot be shared by 3 texts"):
        slimcore.calibration_tokens(tokenizer, samples=2, length=32, source=[prose] * 3)
