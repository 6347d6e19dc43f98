"""Configs and classes after a cut: of any family, RoPE and size of heads, and of models with more to them."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import CONFIG_MAPPING, LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

import slimcore
from slimcore.errors import UnsupportedModelError
from slimcore.models import load_meta, random_model
from slimcore.plan import Width
from slimcore.structure import FAMILIES
from tests.helpers import ROPES, ids, masked_logits, tiny

LONG = ids(2, 70)  # beyond the context that the RoPE of these models was trained on


def unequal(model, layer=1):
    """A plan that takes heads and channels of one layer alone."""
    shapes = slimcore.unscored(model, method="magnitude").shapes
    width = {layer: Width((1,), tuple(range(5, 30)))}
    return slimcore.Plan("x", shapes, sum(p.numel() for p in model.parameters()), tuple(range(len(shapes))), width)


def without(model, layer):
    """The plan that takes one whole layer."""
    shapes = slimcore.unscored(model, method="magnitude").shapes
    keep = tuple(i for i in range(len(shapes)) if i != layer)
    return slimcore.Plan("x", shapes, sum(p.numel() for p in model.parameters()), keep)


def logits(model):
    """Of all tokens at once."""
    with torch.no_grad():
        return model(LONG, use_cache=False).logits


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_unequal_heads_work_with_any_rope_and_without_head_dim(tmp_path, family, rope):
    """Beyond the trained context, where dynamic RoPE is computed anew: masked, cut, saved and loaded are alike."""
    # Two of them: RoPE that was computed anew for one is not, for the same length, a second time.
    model, dense = (tiny(layers=3, family=family, rope=rope, positions=16) for _ in range(2))
    assert ("head_dim" in model.config.to_dict()) == (family != "qwen2")
    plan = unequal(model, layer=0)
    expected = masked_logits(dense, LONG, plan)
    slimcore.prune_(model, plan)
    cut = logits(model)
    assert torch.allclose(cut, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    folder = slimcore.save(model, tmp_path / "slim")
    loaded, _ = slimcore.load(folder)
    assert torch.equal(logits(loaded), cut)
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(model)
    anew = random_model(loaded.config, dtype=torch.float32, device="cpu")
    anew.load_state_dict(model.state_dict())
    assert torch.equal(logits(anew), cut)


def test_whatever_makes_or_loads_an_unequal_model_registers_its_class(tmp_path, monkeypatch):
    """In a process that has imported slimcore as a tool, transformers does not know it yet."""
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    folder = slimcore.save(slimcore.prune_(tiny(), unequal(tiny())), tmp_path / "slim")
    assert "slimcore_llama" in CONFIG_MAPPING
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    slimcore.load(folder)
    assert "slimcore_llama" in CONFIG_MAPPING


def test_a_stock_config_has_head_dim_where_it_needs_it(tmp_path):
    """Qwen2's has none, after a depth cut as before; after an equal cut of its heads it must have one."""
    model = tiny(family="qwen2")
    slimcore.prune_(model, without(model, 2))
    assert "head_dim" not in model.config.to_dict()
    scores = slimcore.unscored(model, method="llm-pruner")
    slimcore.prune_(model, slimcore.select(scores, local_ratio=0.5, protect=(0, 0)))
    assert (type(model).__name__, model.config.head_dim) == ("Qwen2ForCausalLM", 8)
    loaded = Qwen2ForCausalLM.from_pretrained(slimcore.save(model, tmp_path / "slim"))
    assert torch.equal(logits(loaded), logits(model))


def test_an_unequal_model_keeps_its_widths_as_whole_layers_go(tmp_path):
    """Each layer's entry moves with it; class and config class stay, even where what is left is equal."""
    model = tiny()
    slimcore.prune_(model, unequal(model))
    kind, config = type(model), model.config
    for layer in (0, 0):  # the layer of its own width becomes the first, and goes
        slimcore.prune_(model, without(model, layer))
        widths = [layer.mlp.up_proj.out_features for layer in model.model.layers]
        assert [model.config.per_layer_config[i].intermediate_size for i in range(len(widths))] == widths
        assert (type(model), model.config) == (kind, config)
        folder = slimcore.save(model, tmp_path / "slim", overwrite=True)
        assert json.loads((folder / "config.json").read_text())["intermediate_size"] is None
        assert torch.equal(logits(slimcore.load(folder)[0]), logits(model))


class Gained(LlamaForCausalLM):
    """A LLaMA with a further parameter in each layer."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.gain = nn.Parameter(torch.full((config.hidden_size,), 1.5))
            layer.mlp.register_forward_hook(lambda mlp, _, out: out * mlp.gain)


class OwnConfig(LlamaConfig):
    """A config with something further in it."""


def gained(kind=Gained, config=LlamaConfig):
    """A tiny model of that class."""
    model = kind(config(**tiny().config.to_dict())).eval()
    model.load_state_dict(tiny().state_dict(), strict=False)
    return model


def test_a_depth_cut_keeps_the_class_and_what_is_further_in_its_layers(tmp_path):
    """Saved and loaded by its own class, the gains are there and the logits are those of the skipped layer."""
    model = gained(config=OwnConfig)
    slimcore.prune_(model, without(model, 2))
    assert (type(model), type(model.config), model.config.num_hidden_layers) == (Gained, OwnConfig, 5)
    folder = slimcore.save(model, tmp_path / "own")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Gained"]
    loaded, info = Gained.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(slimcore.prune_(tiny(), without(tiny(), 2))))


def with_gain(model):
    """Stock class, one more parameter."""
    model.model.layers[3].mlp.gain = nn.Parameter(torch.ones(3))
    return model


def with_adapter(model):
    """LoRA put inside the projections, the class as it was."""
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model)
    return model


def with_norm(model):
    """A projection whose weight is computed from others."""
    weight_norm(model.model.layers[0].mlp.up_proj)
    return model


def with_head(model):
    """A head beside the one for tokens."""
    model.value = nn.Linear(32, 1)
    return model


def wrapped(model):
    """By PEFT."""
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_gain, r"model\.layers\.N\.mlp\.gain is not in transformers' LlamaForCausalLM.*merge adapters first"),
        (with_norm, r"mlp\.up_proj, a .*ParametrizedLinear, is not"),
        (with_head, "value.* is not in"),
        (with_adapter, r"self_attn\.q_proj is a peft\..*merge adapters first \(PEFT: merge_and_unload\(\)\)"),
        (wrapped, "PeftModelForCausalLM is not laid out.*merge adapters first"),
        (lambda _: gained(), "Gained is not transformers' LlamaForCausalLM.*whole layers can be cut"),
        (lambda _: gained(LlamaForCausalLM, OwnConfig), "OwnConfig is not transformers' LlamaConfig"),
    ],
)
def test_what_a_width_cut_would_lose_is_refused_before_it(change, named):
    """A parameter, an adapter, a head, a class: named, with what to do; the model is as it was."""
    model = change(tiny())
    before, kind = {name: p.clone() for name, p in model.state_dict().items()}, type(model)
    with pytest.raises(UnsupportedModelError, match=named):
        slimcore.prune_(model, unequal(model))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert type(model) is kind
