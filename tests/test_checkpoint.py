"""save and load: fresh processes, ordinary transformers, and folders that are not whole."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import slimcore
from slimcore.checkpoint import PLAN_FILE
from slimcore.errors import CheckpointError, UnknownNameError, UnsupportedModelError
from slimcore.models import SHAPES, load_meta
from tests.helpers import ids, tiny
from tests.test_depth_cut import cuts, plan_keeping

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
assert "slimcore" not in sys.modules
"""


@pytest.mark.parametrize(("tied", "bias"), [(False, False), (True, True)])
def test_a_fresh_process_without_slimcore_gives_equal_logits(tmp_path, tied, bias):
    """A depth-pruned checkpoint is an ordinary one: transformers alone opens it, ties and biases kept."""
    model = tiny(layers=7, tied=tied, bias=bias)
    slimcore.prune_(model, plan_keeping(model, {0, 2, 3, 6}))
    slimcore.save(model, tmp_path / "slim")
    torch.save(ids(), tmp_path / "ids")
    run = [sys.executable, "-c", PLAIN, tmp_path / "slim", tmp_path / "ids", tmp_path / "logits"]
    subprocess.run(run, check=True, cwd=tmp_path, capture_output=True)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits"), model(ids()).logits)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts())
def test_save_and_load_keep_logits_plan_and_tokenizer(tmp_path, tokenizer, cut):
    """Whatever was cut; saving again over it is asked for by name."""
    model, kept = cut
    plan = plan_keeping(model, kept)
    slimcore.prune_(model, plan)
    folder = slimcore.save(model, tmp_path / "slim", plan=plan, tokenizer=tokenizer, overwrite=True)
    loaded, words = slimcore.load(folder)
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    assert words("some words").input_ids == tokenizer("some words").input_ids
    assert slimcore.Plan.load(folder / PLAN_FILE) == plan
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(model)
    assert [p.name for p in tmp_path.iterdir()] == ["slim"]


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    """Nothing is lost; on purpose it is replaced whole."""
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        slimcore.save(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(CheckpointError, match="is a file"):
        slimcore.save(tiny(), tmp_path / "precious.txt")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """Neither a half-written folder nor a temporary one; the old checkpoint still loads."""
    folder = slimcore.save(tiny(seed=1), tmp_path / "slim")
    model = tiny(seed=2)

    def broken(path, **_):
        (path / "config.json").write_text("{")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_pretrained", broken)
    with pytest.raises(CheckpointError, match="disk full"):
        slimcore.save(model, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["slim"]
    assert torch.equal(slimcore.load(folder)[0](ids()).logits, tiny(seed=1)(ids()).logits)


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_a_weight(folder):
    model = tiny()
    weights = {k: v.clone() for k, v in model.state_dict().items() if "layers.3.mlp.up" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _claim_more_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (_truncate, "damaged or half written"),
        (_drop_a_weight, r"lacks 1 of the weights.*layers\.3\.mlp\.up_proj"),
        (_claim_more_layers, r"lacks \d+ of the weights"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
    """No weight is ever made up."""
    folder = slimcore.save(tiny(), tmp_path / "slim")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        slimcore.load(folder)


def test_another_family_is_refused_by_name(tmp_path):
    """With the list of those that are known."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' is not supported \(supported: llama"):
        slimcore.load(tmp_path)


def test_an_unknown_name_is_answered_with_the_nearest():
    """And a path that is not there with its name."""
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna-13b'"):
        slimcore.load("vicuna-31b")
    with pytest.raises(CheckpointError, match="no such folder"):
        slimcore.load("./absent")
    with pytest.raises(UnknownNameError, match="float16"):
        slimcore.load("tiny", dtype="float61")


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch):
    """One line that names the id and the way out."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot get 'nobody/no-such-model' from the model hub") as caught:
        slimcore.load("nobody/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shape_is_made_with_random_weights(dtype):
    """Seeded, of the dtype asked, with norms of one; its rotary table is that of an ordinary model."""
    model, tokenizer = slimcore.load("tiny", dtype=dtype, seed=3)
    again, _ = slimcore.load("tiny", dtype=dtype, seed=3)
    other, _ = slimcore.load("tiny", dtype=dtype, seed=4)
    assert tokenizer is None
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model(ids()).logits, again(ids()).logits)
    assert not torch.equal(model(ids()).logits, other(ids()).logits)
    assert torch.all(model.model.norm.weight == 1)
    std = SHAPES["tiny"].std
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert all(abs(float(p.detach().float().std()) - std) < 0.1 * std for p in matrices)
    ordinary = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(ordinary.eval()(ids()).logits, model(ids()).logits)
