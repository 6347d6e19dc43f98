"""Which weights are loaded: one set, whole, unquantized, finite, each with a place; else none, and it is said why."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import slimcore
from slimcore.errors import CheckpointError
from slimcore.models import load_meta
from tests.helpers import ids, tiny

WHOLE, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 499723\n"
DOWN = "model.layers.3.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with a file of weights."""
    return slimcore.save(tiny(), tmp_path / "model")


def logits(model):
    """On the tokens that all these tests use."""
    with torch.no_grad():
        return model(ids()).logits


def change(folder, name=None, value=None, **config):
    """Give the file another tensor, and config.json other entries."""
    if name is not None:
        weights = load_file(folder / WHOLE)
        weights[name] = value(weights.get(name)) if callable(value) else value
        save_file({k: v for k, v in weights.items() if v is not None}, folder / WHOLE, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def shard(folder):
    """Make several files and an index of the weights; return what the index says."""
    slimcore.load(folder)[0].save_pretrained(folder, max_shard_size="20KB")
    (folder / WHOLE).unlink()
    return json.loads((folder / INDEX).read_text())["weight_map"]


def index(folder, weight_map):
    """Write an index that says this."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _two_sets(folder):
    weights = (folder / WHOLE).read_bytes()
    shard(folder)
    (folder / WHOLE).write_bytes(weights)


def _index_of_others(folder):
    where = shard(folder)
    index(folder, where | {DOWN: where["lm_head.weight"]})


def _index_with_more(folder):
    index(folder, (where := shard(folder)) | {"model.layers.9.mlp.up_proj.weight": where[DOWN]})


def _file_gone(folder):
    (folder / shard(folder)[DOWN]).unlink()


def _twice(folder):
    name = shard(folder)["model.norm.weight"]
    weights = load_file(folder / name)
    save_file(weights | {DOWN: torch.zeros(32, 40)}, folder / name, metadata={"format": "pt"})


def _outside(folder):
    index(folder, dict.fromkeys(shard(folder), "../model.safetensors"))


def _two_sets_of_bin(folder):
    torch.save(load_file(folder / WHOLE), folder / BIN)
    (folder / WHOLE).unlink()
    (folder / f"{BIN}.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_two_sets, r"two sets of weights, model\.safetensors and the files of model\.safetensors\.index\.json"),
        (_two_sets_of_bin, r"two sets of weights, pytorch_model\.bin and the files of pytorch_model\.bin\.index"),
        (_index_of_others, rf"has an index of other weights: {DOWN} is not in model-000"),
        (_index_with_more, r"has an index of other weights: model\.layers\.9\.mlp\.up_proj\.weight is not in"),
        (_twice, rf"{DOWN} is both in .*safetensors and in .*safetensors"),
        (_outside, r"index\.json names \.\./model\.safetensors, which is outside its folder"),
        (lambda f: index(f, shard(f) and {}), r"index\.json is no index"),
        (lambda f: change(f, DOWN, lambda w: w.to(torch.int8)), rf"{DOWN} in .* is stored as I8, .* quantized; prune"),
        (lambda f: change(f, DOWN, lambda w: w.to(torch.float8_e4m3fn)), rf"{DOWN} in .* is stored as F8_E4M3"),
        (lambda f: change(f, "model.layers.0.mlp.up_proj.qweight", torch.ones(4, 4).int()), r"qweight in .* as I32"),
        (lambda f: change(f, "model.layers.0.self_attn.gain", torch.ones(8)), r"holds 1 .* no place for .*attn\.gain"),
        (lambda f: change(f, "model.layers.0.mlp.up_proj.weight_scale", torch.ones(1)), r"no place for .*weight_scale"),
        (lambda f: change(f, "score.weight", torch.ones(2, 32)), r"no place for \(score\.weight"),
        (lambda f: change(f, DOWN, lambda _: None), rf"lacks 1 of the weights .*{DOWN}"),
        (lambda f: change(f, "lm_head.weight", lambda _: None), r"lacks 1 of the weights .*\(lm_head\.weight"),
        (
            lambda f: change(f, DOWN, lambda w: w[:, :39].clone()),
            rf"{DOWN} .* shape \(32, 39\), .* asks for \(32, 40\)",
        ),
        (lambda f: change(f, "layers.0.mlp.up_proj.weight", torch.ones(40, 32)), r"holds model\.layers\.0.* twice, as"),
        (lambda f: change(f, transformers_weights="other.safetensors"), r"names other files for the weights"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), r"holds an adapter .*: merge it first"),
        (lambda f: (f / "config.json").write_text(POINTER), r"config\.json is a Git LFS pointer, .*git lfs pull"),
    ],
)
def test_what_is_not_one_whole_set_of_this_models_weights_is_refused_before_it_is_read(
    folder, monkeypatch, damage, message
):
    """By name and in one line, whether it is to be loaded or counted."""
    damage(folder)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    for load in (slimcore.load, load_meta):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "nobody-knows"}, "nobody-knows"),
        ({"load_in_4bit": True}, "its method has no name"),
        ({}, "its method has no name"),
    ],
)
def test_a_quantized_model_is_refused_by_its_config(folder, run, tmp_path, entry, said):
    """Known to transformers or not; by load, inspect and prune, before any weight."""
    change(folder, quantization_config=entry)
    (folder / WHOLE).write_bytes(b"not to be looked at")
    for command in (("inspect", folder), ("prune", folder, "--layers", 1, "--out", tmp_path / "out")):
        code, _, err = run(*command)
        assert code == 2
        assert f"the model is quantized ({said}): prune the unquantized model" in err
    assert not (tmp_path / "out").exists()


def test_missing_weights_can_be_counted_and_not_loaded(folder):
    """A file that is not there, or that is a pointer of Git LFS: the config still tells what a model costs."""
    whole = slimcore.footprint(load_meta(folder))
    where = shard(folder)
    (folder / where[DOWN]).write_text(POINTER)
    assert slimcore.footprint(load_meta(folder)) == whole
    with pytest.raises(CheckpointError, match=r"safetensors is a Git LFS pointer, .*: git lfs pull"):
        slimcore.load(folder)
    (folder / where[DOWN]).unlink()
    assert slimcore.footprint(load_meta(folder)) == whole
    with pytest.raises(CheckpointError, match=rf"is incomplete: it has no {where[DOWN]}"):
        slimcore.load(folder)


def test_rotary_and_mask_buffers_of_old_checkpoints_are_let_be(folder):
    """They are computed by now, whatever their dtype."""
    expected = logits(slimcore.load(folder)[0])
    for layer in range(6):
        change(folder, f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", torch.ones(4))
    change(folder, "model.layers.0.self_attn.masked_bias", torch.tensor(-1e9))
    change(folder, "transformer.h.0.attn.bias", torch.ones(1, 1, 4, 4).bool())
    assert torch.equal(logits(slimcore.load(folder)[0]), expected)


def test_a_backbone_saved_alone_is_whole_where_its_head_is_tied(tmp_path):
    """Names without the prefix `model.`, as transformers takes them."""
    model = tiny(tied=True)
    folder = slimcore.save(model, tmp_path / "model")
    weights = {name.removeprefix("model."): value for name, value in load_file(folder / WHOLE).items()}
    save_file(weights, folder / WHOLE, metadata={"format": "pt"})
    assert torch.equal(logits(slimcore.load(folder)[0]), logits(model))


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.nan, f"{DOWN} of .* holds NaN"), (torch.inf, f"{DOWN} of .* infinite"), (-torch.inf, "holds infinite")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path, value, message, dtype):
    """One of its values is enough."""
    model = tiny(dtype=dtype)
    model.model.layers[3].mlp.down_proj.weight.data[5, 7] = value
    folder = slimcore.save(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        slimcore.load(folder)


def test_weights_beyond_the_dtype_asked_for_are_refused(folder):
    """65,504 is the largest in float16; in float32 the same file loads."""
    change(folder, DOWN, lambda w: w.index_fill(0, torch.tensor(0), 7e4))
    slimcore.load(folder)
    with pytest.raises(CheckpointError, match=r"holds infinite values as torch\.float16: load it in a larger --dtype"):
        slimcore.load(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("said", [None, "float32", "float16"])
def test_bytes_and_dtype_are_those_of_the_files(tmp_path, dtype, said):
    """Whatever the config says, or does not; where there are no files, the config's; and what is asked for wins."""
    folder = slimcore.save(tiny(dtype=dtype), tmp_path / "model")
    change(folder, dtype=said)
    lies = sum(t.nbytes for t in load_file(folder / WHOLE).values())
    model, _ = slimcore.load(folder)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert slimcore.footprint(load_meta(folder)).weight_bytes == slimcore.footprint(model).weight_bytes == lies
    assert load_meta(folder, dtype="float16").dtype == torch.float16
    (folder / WHOLE).unlink()
    assert load_meta(folder).dtype == getattr(torch, said or "float32")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tied=st.booleans(), head=st.sampled_from(["own", "equal", "none"]), sharded=st.booleans(), seed=st.integers(0, 9)
)
def test_the_head_is_the_one_of_the_files(tmp_path, tied, head, sharded, seed):
    """Said tied or not, with a head of its own, an equal one or none: loaded, counted, written and loaded alike."""
    model = tiny(tied=tied or head != "own", seed=seed)
    folder = slimcore.save(model, tmp_path / "model", overwrite=True)
    embedding = model.model.embed_tokens.weight.detach().clone()
    change(folder, "lm_head.weight", {"own": embedding.flip(0), "equal": embedding, "none": None}[head])
    change(folder, tie_word_embeddings=tied)
    if head == "none" and not tied:
        for load in (slimcore.load, load_meta):
            with pytest.raises(CheckpointError, match=r"lacks 1 of the weights .*\(lm_head\.weight"):
                load(folder)
        return
    if sharded:
        shard(folder)
    loaded, _ = slimcore.load(folder)
    one = tied and head != "own"
    assert torch.equal(loaded.lm_head.weight, embedding.flip(0) if head == "own" else embedding)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == one == loaded.config.tie_word_embeddings
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(loaded)
    again = slimcore.save(loaded, tmp_path / "again", overwrite=True)
    assert json.loads((again / "config.json").read_text())["tie_word_embeddings"] == one
    assert ("lm_head.weight" in load_file(again / WHOLE)) == (not one)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), logits(loaded))
