"""Plans as JSON: read strictly or refused in one line; earlier schemas are read; what is read cuts as it says."""

import json
import math
import subprocess
import sys
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore.errors import OtherWeightsWarning, PlanError, SlimcoreError
from slimcore.plan import Plan
from tests.helpers import ids, masked_logits, tiny

ROOT = Path(slimcore.__file__).parent.parent
HEALED = {"text": "a", "text_sha256": "h1 + h2", "perplexity": [9.0, 8.0], "kept": True}


def small():
    """A model with something to cut."""
    return tiny(layers=4, heads=4, kv_heads=2)


@cache
def written():
    """Plans for `small()`, as JSON: of whole layers, of widths with means, and of three steps."""
    model = small()
    depth = slimcore.select(slimcore.score(model, method="depth-magnitude"), layers=1, protect=(0, 0))
    wide = slimcore.select(slimcore.score(model, ids(), method="flap"), ratio=0.3)
    steps = depth.with_healing(HEALED)
    slimcore.prune_(model, depth)
    for text, ratio in (("t1", 0.2), ("t2", 0.3)):
        tokens = slimcore.Tokens(ids(), text=text, text_sha256=text)
        plan = slimcore.select(slimcore.score(model, tokens, method="flap"), ratio=ratio)
        slimcore.prune_(model, plan)
        steps = steps.then(plan)
    return {name: plan.as_dict() for name, plan in (("depth", depth), ("wide", wide), ("steps", steps))}


NONSENSE = (None, True, False, 0, 1, -1, 7, 2.5, 10**400, math.nan, math.inf, "", "x", "1", "\ud800", "a\nb",
            [], [1], [[]], {}, {"x": 1}, {"ratio": 0.1}, [{}])  # fmt: skip


@st.composite
def mutated(draw):
    """A plan's JSON with one entry changed, removed or added, somewhere."""
    data = deepcopy(written()[draw(st.sampled_from(sorted(written())))])
    holder, inner = data, data
    while isinstance(inner, dict | list) and inner and (inner is data or draw(st.integers(0, 4))):
        holder = inner
        key = draw(st.sampled_from(sorted(inner))) if isinstance(inner, dict) else draw(st.integers(0, len(inner) - 1))
        inner = holder[key]
    kind = draw(st.sampled_from(["change", "move", "move", "remove", "add"]))
    if kind == "remove":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[draw(st.sampled_from(["extra", "", "0", "-1", "99", "a\nb"]))] = draw(st.sampled_from(NONSENSE))
    elif kind == "move" and isinstance(inner, int | float):
        holder[key] = inner + draw(st.sampled_from([-1, 1, 0.5, 1e-9, 1e300, 99]))
    else:
        holder[key] = draw(st.sampled_from(NONSENSE))
    return data


def state(model):
    """All that a cut may change: class, config, and every bit of the weights."""
    return type(model), model.config.to_dict(), {name: p.clone() for name, p in model.named_parameters()}


def same(one, other):
    """Whether two states are equal, bit for bit."""
    return (
        one[:2] == other[:2]
        and list(one[2]) == list(other[2])
        and all(
            torch.equal(a.view(torch.int32), b.view(torch.int32))
            for a, b in zip(one[2].values(), other[2].values(), strict=True)
        )
    )


def check_cut(plan):
    """It cuts exactly what it says out of its model, or the model is left as it was, bit for bit."""
    model = small()
    before = state(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtherWeightsWarning)
            slimcore.prune_(model, plan)
    except SlimcoreError:
        assert same(before, state(model))
        return
    with torch.no_grad():
        expected = masked_logits(small(), ids(), plan)
        assert torch.allclose(model(ids()).logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert sum(p.numel() for p in model.parameters()) == plan.parameters


@settings(max_examples=250)
@given(mutated())
def test_one_change_to_a_plan_is_refused_in_one_line_or_gives_a_plan_that_cuts_as_it_says(data):
    """Whatever changed: a type, a number, NaN, an entry gone, an entry more. Never another exception."""
    try:
        plan = Plan.from_dict(json.loads(json.dumps(data)))
    except PlanError as error:
        assert "\n" not in str(error)
        return
    again = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again == plan
    assert str(again) == str(plan)
    assert plan.texts == again.texts
    assert not any(step.healed for step in plan.unhealed().steps)
    check_cut(plan)


@pytest.mark.parametrize("name", ["depth", "wide", "steps"])
def test_a_plan_reads_back_and_cuts(name, tmp_path):
    """Equal from JSON and from its file, whose text is the same when written again."""
    plan = Plan.from_dict(written()[name])
    assert plan.as_dict() == written()[name]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    check_cut(plan)


def test_what_is_wrong_is_named_with_its_value_and_what_was_expected():
    """One line each."""
    for name, path, value, message in (
        ("depth", ["protect"], 7, r"here: protect must be a valid array \(got 7\)"),
        ("depth", ["steps"], {}, r"here: steps must be a valid array \(got {}\)"),
        ("depth", ["scores"], 5, r"here: scores must be a valid array \(got 5\)"),
        ("depth", ["scores", 1], math.nan, r"here: scores.1 must be a finite number \(got nan\)"),
        ("depth", ["scores"], [1.0], r"here: scores must be one for each of 4 layers, or none \(got 1\)"),
        ("depth", ["keep", 0], 0.0, r"here: keep.0 must be a valid integer \(got 0.0\)"),
        ("depth", ["keep", 1], True, r"here: keep.1 must be a valid integer \(got True\)"),
        ("depth", ["keep", 2], 9, r"here: keep must be ascending indices within 0..3"),
        ("depth", ["extra"], 1, r"here: 'extra' is not a field that is known here"),
        ("depth", ["method"], "flap", r"here: method must be that of the steps, 'depth-magnitude' \(got 'flap'\)"),
        ("depth", ["shapes", 0, "kv_groups"], 0, r"here: a layer's sizes must be a whole number, 1 or more \(got 0\)"),
        ("depth", ["shapes", 0, "kv_groups"], 3, r"here: a layer's heads must divide evenly among its KV groups"),
        ("depth", ["steps", 0, "budget"], {"layers": 1.0}, r"here: steps.0.budget.layers must be a valid integer"),
        ("depth", ["steps", 0, "budget"], {"ratio": 2.0}, r"here: ratio must lie between 0 and 1"),
        ("depth", ["steps", 0, "scored"], [], r"here: steps.0.scored must be an object \(got \[\]\)"),
        ("depth", ["steps", 0, "scored"], {"x": math.nan}, r"here: scored must hold what JSON can"),
        ("wide", ["width", "1", "down_means", 0], math.inf, r"here: width.1.down_means.0 must be a finite number"),
        ("wide", ["width", "1", "down_means", 0], 1e39, r"here: layer 1: down_means must be finite numbers"),
        ("wide", ["width", "1", "channels"], [1, "2"], r"here: width.1.channels.1 must be a valid integer \(got '2'\)"),
        ("wide", ["width", "1"], [], r"here: width.1 must be an object \(got \[\]\)"),
        ("wide", ["width", "one"], {}, r"here: width.one.*must be a valid integer.*got 'one'"),
    ):
        data = deepcopy(written()[name])
        *outer, last = path
        holder = data
        for key in outer:
            holder = holder[key]
        holder[last] = value
        with pytest.raises(PlanError, match=message) as caught:
            Plan.from_dict(data, where="here")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read a plan"),
        ("[" * 10**5, "cannot read a plan"),
        ("[]", "not a plan of schema .*found 'list'"),
        ('{"schema": "slimcore.plan/9"}', "not a plan of schema .* make it anew"),
        ('{"schema": "slimcore.plan/1"}', "not a plan of schema"),
        ('{"schema": ["slimcore.plan/3"]}', "not a plan of schema"),
        ('{"schema": "slimcore.plan/3"}', "method is missing"),
        ('{"schema": "slimcore.plan/2", "provenance": []}', r"provenance must be an object \(got \[\]\)"),
        ('{"schema": "slimcore.plan/2", "provenance": {"steps": [5]}}', "provenance must be an object"),
        ('{"schema": "slimcore.plan/2", "shapes": [], "width": [1]}', "plan.json"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, content, message):
    """By its name, with what is wrong."""
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def as_schema_2(data, budget, provenance):
    """A plan's JSON as the schema before had it."""
    return {k: v for k, v in data.items() if k != "steps"} | {
        "schema": "slimcore.plan/2", "budget": budget, "provenance": provenance,
    }  # fmt: skip


def test_plans_of_the_schema_before_are_read():
    """With their budget, calibration and healing; and composed ones, whose provenance nests, as flat steps."""
    on = {"metric": "WIFV", "text_sha256": "h0", "weights_sha256": "w"}
    plan = Plan.from_dict(as_schema_2(written()["depth"], {"layers": 1}, on | {"healed": HEALED}))
    assert plan.keep == Plan.from_dict(written()["depth"]).keep
    assert (plan.steps[0].budget.layers, plan.steps[0].scored, plan.steps[0].healed) == (1, on, HEALED)
    assert plan.weights_sha256 == "w"
    depth, wide = {"method": "depth-magnitude", "budget": {"layers": 1}}, {"method": "flap", "budget": {"ratio": 0.3}}
    nested = {
        "steps": [
            {"method": "depth-magnitude, then flap", "budget": {}, "steps": [
                depth | {"healed": {"text_sha256": "h1 + h2"}}, wide | {"text_sha256": "h3"}]},
            wide | {"text_sha256": "h4"},
        ],
        "recovered": {"text_sha256": "h5"},
    }  # fmt: skip
    plan = Plan.from_dict(as_schema_2(written()["steps"], {}, nested))
    assert [step.method for step in plan.steps] == ["depth-magnitude", "flap", "flap"]
    assert [bool(step.recovered) for step in plan.steps] == [False, False, True]
    assert plan.texts == {"h1", "h2", "h3", "h4", "h5"}
    assert Plan.from_dict(plan.as_dict()) == plan


@pytest.mark.parametrize("path", sorted((ROOT / "reports").rglob("results.jsonl")), ids=lambda path: path.parent.name)
def test_the_plans_in_committed_reports_are_read(path):
    """Whatever schema they were written in."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    plans = [Plan.from_dict(record["plan"]) for record in records if record.get("plan")]
    assert plans
    assert all(plan.parameters < plan.parameters_before for plan in plans)


def test_all_steps_keep_their_texts_and_lose_their_claims():
    """Of three steps all texts count, each by itself; `unhealed` leaves no step that claims healing."""
    plan = Plan.from_dict(written()["steps"])
    assert [step.method for step in plan.steps] == ["depth-magnitude", "flap", "flap"]
    assert plan.method == "depth-magnitude, then flap, then flap"
    assert plan.texts == {"h1", "h2", "t1", "t2"}
    assert [step.budget.as_dict() for step in plan.steps] == [{"layers": 1}, {"ratio": 0.2}, {"ratio": 0.3}]
    both = plan.with_recovery({"text_sha256": "h9", "curve": [math.inf]})
    assert both.texts == plan.texts | {"h9"}
    assert both.steps[2].recovered["curve"] == [None]
    assert not any(step.healed or step.recovered for step in both.unhealed().steps)
    assert both.unhealed().texts == {"t1", "t2"}
    assert "healed      perplexity on a 9 -> 8" in str(both)
    assert "healed" not in str(both.unhealed())


def test_importing_plans_takes_no_pydantic():
    """It comes in where a plan is read."""
    code = "import sys, slimcore.selection; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_without_pydantic_reading_says_what_to_install(monkeypatch):
    """In a line, from a plain checkout."""
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(PlanError, match="to read it takes pydantic: pip install"):
        Plan.from_dict(written()["depth"])
