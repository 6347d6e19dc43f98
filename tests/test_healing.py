"""Healing: the refit against its normal equations, on the pruned model's own states; what it must not change."""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore import healing, trial
from slimcore.calibration import Tokens
from slimcore.errors import PlanError, TextError, UnsupportedModelError
from slimcore.plan import Width
from slimcore.refits import find, set_
from slimcore.structure import DOWN, FAMILIES, NORMS, OUT, decoder, projection
from slimcore.trial import Verdict
from tests.devices import Devices
from tests.helpers import ids, in_a_fresh_process, models_drawn, tiny, width_plans

TOKENS = Tokens(ids(windows=16, length=16, seed=1), kinds=("a",) * 8 + ("b",) * 8)
FITTED = [*range(6), *range(8, 14)]  # two of each kind are held out
HELD = [6, 7, 14, 15]


def plan_of(model, keep, width=None):
    """A plan that keeps these layers."""
    shapes = slimcore.unscored(model, method="flap").shapes
    return slimcore.Plan("drawn", shapes, sum(p.numel() for p in model.parameters()), tuple(keep), width or {})


def heal(model, plan, tokens=TOKENS, **options):
    """heal_, where what it changes is kept: weights drawn at random know nothing of the tokens."""
    kept = Verdict(1.0, {"a": 2.0, "b": 30.0}, {"a": 1.0, "b": 20.0})
    with patch.object(healing, "judge", return_value=kept):
        return slimcore.heal_(model, plan, tokens, **options)


def changes(plan):
    """The record of what was changed."""
    return plan.steps[-1].healed


@torch.no_grad()
def seen(model, places):
    """Float64 rows of what each (layer, part) is given by the fitted windows; part None: the layer's output."""
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
    model(TOKENS.ids[FITTED], use_cache=False)
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
    ridge = changes(plan)["ridge"][f"{layer}.{name}"]
    if ridge is None:
        assert torch.equal(before, after)
        return
    weighted = x.T / d.square().sum(1)
    change = ridge * (weighted @ x).diagonal().mean() * (after - before)
    torch.testing.assert_close(weighted @ (d - h), change, rtol=2e-3, atol=2e-3 * float(change.abs().max() + 1e-3))


@settings(max_examples=25)
@given(data=st.data(), model=models_drawn(min_layers=4, families=FAMILIES))
def test_each_gap_is_fitted_on_what_the_healed_model_computes(data, model):
    """Over families, biases, tied embeddings and gaps: also the second, whose inputs the first one's refit moved."""
    count = len(model.model.layers)
    removed = data.draw(st.sets(st.integers(1, count - 1), min_size=1, max_size=count - 1))
    plan = plan_of(model, [i for i in range(count) if i not in removed])
    healed, pruned = copy.deepcopy(model), copy.deepcopy(model)
    plan = heal(healed, plan)
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
    found = {i for i in before_gaps if changes(plan)["ridge"][f"{i}.{DOWN}"] is not None}
    assert changed == {f"model.layers.{plan.keep.index(i)}.{DOWN}.weight" for i in found}
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
    plan = heal(healed, plan)
    for layer in plan.width:
        assert_fitted(model, healed, plan, layer, OUT, (layer, NORMS[1]))
        end = max(i for i in range(5) if set(range(layer + 1, i + 1)) <= set(plan.removed) and i >= layer)
        assert_fitted(model, healed, plan, layer, DOWN, (end, None))


@pytest.mark.parametrize("bias", [False, True])
def test_a_gap_that_did_nothing_stays_as_it_was(bias):
    """Layers that add nothing leave nothing to fit, and the perplexity is the dense model's."""
    model = tiny(layers=6, bias=bias)
    for index in (2, 3):
        for name in (OUT, DOWN):
            for parameter in projection(model.model.layers[index], name).parameters():
                parameter.data.zero_()
    dense = copy.deepcopy(model)
    plan = slimcore.heal_(model, plan_of(model, (0, 1, 4, 5)), TOKENS)
    torch.testing.assert_close(model(ids()).logits, dense(ids()).logits, rtol=1e-4, atol=1e-4)
    weights = [projection(m.model.layers[1], DOWN).weight for m in (model, dense)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    for kind, rows in (("a", HELD[:2]), ("b", HELD[2:])):
        value = slimcore.perplexity(dense, TOKENS.ids[rows]).value
        assert changes(plan)["perplexity"][kind] == pytest.approx([value, value], rel=1e-4)


def test_the_plan_tells_of_it(tmp_path):
    """Text, windows and what is left of the error are saved with the plan, said in print, and forgotten on purpose."""
    model = tiny(layers=6)
    plan = heal(model, plan_of(model, (0, 1, 4, 5)))
    slimcore.save(model, tmp_path / "healed", plan=plan)
    read = slimcore.Plan.load(tmp_path / "healed" / "slimcore_plan.json")
    assert read == plan
    assert list(changes(read)["error_left"]) == [f"1.{DOWN}"]
    assert 0 < changes(read)["error_left"][f"1.{DOWN}"] <= 1
    assert changes(read)["held_out"] == len(HELD)
    assert "healed      perplexity on a 2 -> 1\n  healed      perplexity on b 30 -> 20\n" in str(read) + "\n"
    assert not any(step.healed for step in read.unhealed().steps)
    assert torch.equal(in_a_fresh_process(tmp_path / "healed", tmp_path), model(ids()).logits)


@settings(max_examples=10)
@given(data=st.data())
def test_each_texts_before_and_after_are_what_the_models_do(data):
    """Perplexity of each kind held out, of the model cut, half healed and healed, which is not touched before."""
    model = tiny(layers=5, seed=data.draw(st.integers(0, 9)), bias=data.draw(st.booleans()))
    plan = data.draw(width_plans(model, depth=True))
    if 0 in plan.removed:
        return
    dense = copy.deepcopy(model).state_dict()
    view, held = decoder(model), {"a": [ids(2), ids(1, seed=1)], "b": [ids(1, seed=2)]}
    refits = find(view, plan, [[TOKENS.ids[:8]], [TOKENS.ids[8:]]], torch.float32)
    shares = (0.0, 0.5, 1.0)
    said = trial.perplexities(view, plan, refits, held, shares, torch.float32)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    for share, each in zip(shares, said, strict=True):
        changed = copy.deepcopy(model)
        slimcore.prune_(changed, plan)
        for refit in refits:
            set_(changed.model.layers[plan.keep.index(refit.layer)], [refit], share)
        expected = {kind: slimcore.perplexity(changed, torch.cat(parts)).value for kind, parts in held.items()}
        assert each == pytest.approx(expected, rel=1e-4)


BEFORE, BETTER, WORSE = {"a": 2.0, "b": 3.0}, {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 3.1}


@pytest.mark.parametrize(
    ("tried", "kept", "said"),
    [
        ([BETTER], 1.0, "b 3 -> 3"),
        ([WORSE, BETTER], 0.5, "b 3 -> 3\n              with 0.5 of each change"),
        ([WORSE, WORSE, BETTER], 0.25, "b 3 -> 3\n              with 0.25 of each change"),
        ([WORSE, WORSE, WORSE], 0.0, "b 3 -> 3.1\n              no: some text would get worse"),
        ([{"a": 1.0, "b": float("nan")}] * 3, 0.0, "b 3 -> not finite\n              no: some text would get worse"),
    ],
)
def test_a_kind_of_text_that_healing_would_harm_has_less_of_it(tried, kept, said):
    """A half of each change, a quarter, or none; the plan says so, and the weights are between cut and healed."""
    models = [tiny(layers=6) for _ in range(3)]
    plan = plan_of(models[0], (0, 1, 4, 5))
    with patch.object(trial, "perplexities", side_effect=[[BEFORE, tried[0]], *([one] for one in tried[1:])]):
        healed = slimcore.heal_(models[0], plan, TOKENS)
    heal(models[1], plan)
    slimcore.prune_(models[2], plan)
    part, whole, cut = (projection(model.model.layers[1], DOWN).weight for model in models)
    torch.testing.assert_close(part, cut + kept * (whole - cut), rtol=1e-5, atol=1e-7)
    assert not whole.equal(cut)
    assert changes(healed)["kept"] == kept
    assert f"perplexity on a 2 -> 1\n  healed      perplexity on {said}" in str(healed)


def test_windows_that_judge_are_not_fitted_on():
    """Other windows in their place change what is said of each text, and not one refit."""
    others = Tokens(TOKENS.ids.clone(), kinds=TOKENS.kinds)
    others.ids[HELD] = ids(len(HELD), 16, seed=9)
    models, plans = [tiny(layers=6), tiny(layers=6)], []
    for model, tokens in zip(models, (TOKENS, others), strict=True):
        heal(model, plan_of(model, (0, 1, 4, 5)), tokens)
        plans.append(slimcore.heal_(tiny(layers=6), plan_of(tiny(layers=6), (0, 1, 4, 5)), tokens))
    assert all(p.equal(q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert changes(plans[0])["perplexity"] != changes(plans[1])["perplexity"]


@given(counts=st.lists(st.integers(3, 40), min_size=1, max_size=9))
def test_every_window_is_fitted_on_or_held_out(counts):
    """Of each kind about one in eight is held out, and one at least; a fold is kinds, or where there is one, windows."""
    kinds = [str(kind) for kind, count in enumerate(counts) for _ in range(count)]
    split = healing._split(Tokens(torch.zeros(len(kinds), 4), kinds=tuple(kinds)))
    held = [number for numbers in split.held.values() for number in numbers]
    assert sorted(held + [number for fold in split.folds for number in fold]) == list(range(len(kinds)))
    for kind, numbers in split.held.items():
        assert {kinds[number] for number in numbers} == {kind}
        assert 1 <= len(numbers) <= max(2, kinds.count(kind) / 8)
    assert 2 <= len(split.folds) <= 5
    if len(counts) > 1:
        of_folds = [{kinds[number] for number in fold} for fold in split.folds]
        assert sum(map(len, of_folds)) == len(counts)


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
    assert seen(models[1], [(1, None)])[1, None].abs().max() > 1000
    half, whole = (projection(model.model.layers[1], DOWN).weight for model in models)
    torch.testing.assert_close(half, whole, rtol=5e-2, atol=5e-2 * float(whole.abs().max()))
    assert changes(plans[0])["error_left"] == pytest.approx(changes(plans[1])["error_left"], abs=1e-2)


def _times(factor):
    model = tiny(layers=6)
    projection(model.model.layers[1], "mlp.up_proj").weight.data.fill_(factor)
    return model


CUT, INSIDE = ((0, 1, 5), None), (range(6), {1: Width((0,), (0, 1, 2))})
ONE_OF_B = Tokens(TOKENS.ids, kinds=("a",) * 15 + ("b",))


@pytest.mark.parametrize(
    ("model", "cut", "tokens", "arithmetic", "error", "words"),
    [
        (tiny(), (range(6), None), TOKENS, None, PlanError, "nothing to heal"),
        (tiny(), ((1, 2, 3, 4, 5), None), TOKENS, None, PlanError, "the first layer goes"),
        (tiny(layers=7), CUT, TOKENS, None, PlanError, "the plan is for 6 layers, the model has 7"),
        (tiny(), CUT, TOKENS.ids[:2], None, TextError, "40 inputs.*got 2 windows of 16, ask for at least 3"),
        (tiny(), CUT, ONE_OF_B, None, TextError, "at least 2 windows of each kind.* got 1 of b"),
        (tiny(), CUT, TOKENS.ids + 256, None, TextError, "token ids must lie within"),
        (_times(3e38), CUT, TOKENS, None, UnsupportedModelError, "layer 1 computes values that are not finite"),
        (_times(3e38), INSIDE, TOKENS, None, UnsupportedModelError, "not finite"),
        (_times(1e4), CUT, TOKENS, torch.float16, UnsupportedModelError, "layer 1 .* not finite in torch.float16"),
    ],
)
def test_what_cannot_be_healed_is_left_alone(model, cut, tokens, arithmetic, error, words):
    """One line that says what is wrong, and a model that is what it was."""
    before = copy.deepcopy(model).state_dict()
    plan = plan_of(tiny(), *cut)
    with pytest.raises(error, match=words):
        slimcore.heal_(model, plan, tokens, arithmetic=arithmetic)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cut_model_that_overflows_is_refused_before_it_is_cut():
    """The dense model is finite in float16, and the refits are; without its last layer the loss is not."""
    model = tiny(layers=6)
    before = copy.deepcopy(model).state_dict()
    with (
        patch.object(trial, "perplexities", return_value=[{"a": float("nan")}, {"a": 1.0}]),
        pytest.raises(UnsupportedModelError, match="the cut model computes values that are not finite.*on a"),
    ):
        slimcore.heal_(model, plan_of(model, (0, 1, 4, 5)), TOKENS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_from_the_command_line(run, tmp_path, tokenizer, prose, monkeypatch):
    """Cut and healed, opened by stock transformers; replayed without healing; a text seen before is named."""
    folder, out = slimcore.save(tiny(layers=8), tmp_path / "model", tokenizer=tokenizer), tmp_path / "healed"
    kept = Verdict(1.0, {"prose.txt": 2.0, "other.txt": 3.0}, {"prose.txt": 1.0, "other.txt": 2.0})
    monkeypatch.setattr(healing, "judge", lambda *_: kept)
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, with other words. " * 200)
    cut = ("--layers", 2, "--protect", "1,1", "--samples", 4, "--length", 32)
    code, printed, err = run("prune", folder, "--out", out, *cut, "--heal", "--heal-samples", 20,
                             "--text", prose, "--text", other)  # fmt: skip
    assert (code, err) == (0, "")
    assert "healed      perplexity on prose.txt 2 -> 1\n  healed      perplexity on other.txt 3 -> 2\n" in printed
    plan = slimcore.Plan.load(out / "slimcore_plan.json")
    assert plan.steps[0].healed["windows"] == [20, 32]
    code, _, err = run("prune", folder, "--out", tmp_path / "x", *cut, "--heal", "--text", other)
    assert code == 2
    assert "other.txt gives 237 windows of 32 tokens, 320 were asked" in err
    healed = in_a_fresh_process(out, tmp_path)
    assert run("prune", folder, "--plan", out / "slimcore_plan.json", "--out", tmp_path / "cut")[0] == 0
    assert not slimcore.Plan.load(tmp_path / "cut" / "slimcore_plan.json").steps[0].healed
    assert not torch.equal(slimcore.load(tmp_path / "cut")[0](ids()).logits, healed)
    for text, warned in ((prose, True), (other, True), ("builtin", False)):
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
