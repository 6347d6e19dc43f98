"""Checkpoints whose layers differ in width: fresh processes with and without slimcore, stock classes, LoRA, devices."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import slimcore
from slimcore.checkpoint import PLAN_FILE
from slimcore.errors import CheckpointError, UnsupportedModelError
from slimcore.models import load_meta
from slimcore.structure import FAMILIES
from tests.helpers import ROPES, ids, in_a_fresh_process, models_drawn, tiny, width_plans


def pruned(method="flap", *, ratio=0.3, protect=None, **kwargs):
    """A tiny model, cut."""
    model = tiny(**kwargs)
    plan = slimcore.select(slimcore.score(model, ids(), method=method, protect=protect), ratio=ratio)
    return slimcore.prune_(model, plan), plan


def logits(model):
    """On the tokens that all these tests use."""
    with torch.no_grad():
        return model(ids()).logits


@pytest.mark.parametrize(("family", "rope"), [*zip(FAMILIES, ROPES[1:], strict=True)])
def test_a_fresh_process_gives_equal_logits_with_the_code_beside_the_weights(tmp_path, family, rope):
    """Biases, per-layer shapes, ties, scaled RoPE: with trust_remote_code where there is no slimcore."""
    model, plan = pruned(family=family, tied=family in ("llama", "gemma"), rope=rope)
    assert type(model).__name__.startswith("Slim")
    folder = slimcore.save(model, tmp_path / "slim", plan=plan)
    assert torch.equal(in_a_fresh_process(folder, tmp_path, trust=True), logits(model))


def test_a_uniform_legal_plan_is_a_stock_checkpoint(tmp_path):
    """LLM-Pruner's equal share of every layer: config.json of a plain Llama, loaded with nothing special."""
    model = tiny(heads=4, kv_heads=4)
    scores = slimcore.score(model, ids(), method="llm-pruner", protect=(0, 0))
    plan = slimcore.select(scores, local_ratio=0.5)
    slimcore.prune_(model, plan)
    folder = slimcore.save(model, tmp_path / "slim", plan=plan)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["intermediate_size"], config["head_dim"]) == (2, 20, 8)
    assert not {"per_layer_config", "auto_map", "o_proj_bias"} & set(config)
    assert not list(folder.glob("*.py"))
    assert torch.equal(in_a_fresh_process(folder, tmp_path), logits(model))


@pytest.mark.parametrize(("heads", "local_ratio", "stock"), [(4, 0.25, False), (4, 0.5, True), (6, 0.5, True)])
def test_what_the_stock_class_refuses_is_not_given_to_it(heads, local_ratio, stock):
    """Three heads do not divide the hidden size of four: a Llama may not be so, and is saved as what it is."""
    model = tiny(heads=heads, kv_heads=heads)
    plan = slimcore.select(slimcore.unscored(model, method="llm-pruner"), local_ratio=local_ratio, protect=(0, 0))
    slimcore.prune_(model, plan)
    assert len({(s.kv_groups, s.channels) for s in plan.after()}) == 1
    assert (type(model).__name__ == "LlamaForCausalLM") is stock


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models_drawn(families=FAMILIES), st.data())
def test_save_and_load_keep_any_plan(tmp_path, model, data):
    """Logits, footprint, class, plan and dtype; what is loaded can be cut and saved again."""
    plan = data.draw(width_plans(model, depth=True))
    slimcore.prune_(model, plan)
    folder = slimcore.save(model, tmp_path / "slim", plan=plan, overwrite=True)
    loaded, _ = slimcore.load(folder)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(loaded) == slimcore.footprint(model)
    assert slimcore.Plan.load(folder / PLAN_FILE) == plan
    second = data.draw(width_plans(loaded, depth=True))
    for again in (loaded, model):
        slimcore.prune_(again, second)
    folder = slimcore.save(loaded, tmp_path / "slim", overwrite=True)
    assert torch.equal(logits(slimcore.load(folder)[0]), logits(model))
    assert [p.name for p in tmp_path.iterdir()] == ["slim"]


def test_everything_that_belongs_goes_along(tmp_path, tokenizer):
    """Shards, generation config, tokenizer, plan, and the code that reads it; saved again by transformers, too."""
    model, plan = pruned(tied=True)
    model.generation_config.max_new_tokens = 7
    folder = slimcore.save(model, tmp_path / "slim", plan=plan, tokenizer=tokenizer)
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "generation_config.json", "modeling_slimcore.py", PLAN_FILE, "tokenizer.json"} <= names
    loaded, words = slimcore.load(folder)
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert words("some words").input_ids == tokenizer("some words").input_ids
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert torch.equal(logits(slimcore.load(tmp_path / "sharded")[0]), logits(model))
    assert torch.equal(in_a_fresh_process(tmp_path / "sharded", tmp_path, trust=True), logits(model))


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path):
    """Biases would vanish in silence where a config does not ask for them."""
    model, _ = pruned()
    folder = slimcore.save(model, tmp_path / "slim")
    config = json.loads((folder / "config.json").read_text())
    for layer in config["per_layer_config"].values():
        layer.pop("down_proj_bias", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"holds \d+ weights that its config.json has no place for"):
        slimcore.load(folder)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it
def test_lora_attaches_trains_a_step_and_merges():
    """Sizes that are true are what PEFT builds on; merged, the model gives what it gave with the adapter."""
    from peft import LoraConfig, get_peft_model

    model, _ = pruned(layers=4)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    before = logits(adapted)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # the second step reaches what the first one's zeros held back
        optimizer.zero_grad()
        adapted(ids(), labels=ids()).loss.backward()
        optimizer.step()
    after = logits(adapted)
    assert not torch.allclose(before, after, atol=1e-3)
    merged = adapted.merge_and_unload()
    assert torch.allclose(logits(merged), after, rtol=1e-3, atol=1e-3 * float(after.abs().max()))
    assert slimcore.footprint(merged).parameters == sum(p.numel() for p in merged.parameters())


@pytest.mark.parametrize("method", ["llm-pruner", "flap", "depth-ppl", "depth-taylor"])
def test_a_dispatched_model_is_scored_and_cut_where_it_lies(method):
    """With accelerate's hooks on every layer, as device_map="auto" leaves them: the same scores and logits."""
    from accelerate import dispatch_model

    dispatched = dispatch_model(tiny(), device_map={"": "cpu"}, force_hooks=True)
    layer = dispatched.model.layers[0]
    plain = tiny()
    scores = [slimcore.score(m, ids(), method=method, protect=(1, 1)) for m in (dispatched, plain)]
    assert scores[0] == scores[1]
    plan = slimcore.select(scores[0], ratio=0.3)
    for model in (dispatched, plain):
        slimcore.prune_(model, plan)
    assert dispatched.model.layers[0] is layer
    assert torch.equal(logits(dispatched), logits(plain))


def test_a_model_that_lies_partly_on_disk_is_refused(tmp_path):
    """Offloaded weights are not there to be scored; the error says which, and what to do."""
    from accelerate import disk_offload

    model = disk_offload(tiny(), tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match="load the model whole onto its devices"):
        slimcore.score(model, ids(), method="flap")


def test_attention_implementations_can_be_changed_afterwards():
    """One config object serves all layers: switched to eager, masks and layers agree."""
    model, _ = pruned()
    expected = logits(model)
    model.set_attn_implementation("eager")
    assert torch.allclose(logits(model), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert model.generate(
        ids(), do_sample=False, max_new_tokens=3, pad_token_id=0, cache_implementation="static"
    ).shape == (3, 15)


@pytest.mark.parametrize("text", ['{"model_type": "gpt2"}', '{"model_type": "slimcore_gpt2"}'])
def test_another_family_is_refused_by_name(tmp_path, text):
    """Whatever it is called."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((UnsupportedModelError, CheckpointError), match="gpt2"):
        slimcore.load(tmp_path)


def test_auto_classes_of_transformers_load_it_here(tmp_path):
    """Slimcore being imported, from_pretrained needs no trust."""
    model, _ = pruned()
    folder = slimcore.save(model, tmp_path / "slim")
    assert type(AutoConfig.from_pretrained(folder)) is type(model.config)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))
