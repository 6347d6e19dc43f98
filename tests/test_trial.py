"""Windows held out of healing: which they are, what is said of them, and what that decides."""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore import healing, trial
from slimcore.calibration import Tokens
from slimcore.errors import UnsupportedModelError
from slimcore.refits import find, set_
from slimcore.structure import DOWN, decoder, projection
from tests.healed import HELD, TOKENS, changes, heal, plan_of
from tests.helpers import ids, tiny, width_plans

BEFORE, BETTER, WORSE = {"a": 2.0, "b": 3.0}, {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 3.1}


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


@pytest.mark.parametrize(
    ("tried", "kept", "said"),
    [
        ([BETTER], 1.0, "b 3 -> 3"),
        ([WORSE, BETTER], 0.5, "b 3 -> 3\n              with 0.5 of each change"),
        ([WORSE, WORSE, BETTER], 0.25, "b 3 -> 3\n              with 0.25 of each change"),
        ([WORSE, WORSE, WORSE], 0.0, "b 3 -> 3.1\n              some text would get worse"),
        ([{"a": 1.0, "b": float("nan")}] * 3, 0.0, "b 3 -> not finite\n              some text would get worse"),
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
    label = "healed    " if kept else "not healed"
    assert f"  {label}  perplexity on a 2 -> 1\n  {label}  perplexity on {said}" in str(healed)


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
    """About one in eight of each kind is held out, and one at least; a fold is kinds, or windows where there is one."""
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


def test_a_cut_model_that_overflows_is_refused_before_it_is_cut():
    """The dense model is finite in float16, and the refits are; without its last layer the loss is not."""
    model = tiny(layers=6)
    before = copy.deepcopy(model).state_dict()
    with (
        patch.object(trial, "perplexities", return_value=[{"a": float("nan")}, {"a": 1.0}]),
        pytest.raises(UnsupportedModelError, match=r"the cut model computes values that are not finite.*on a"),
    ):
        slimcore.heal_(model, plan_of(model, (0, 1, 4, 5)), TOKENS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
