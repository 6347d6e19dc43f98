"""Models whose layers differ in width: this file needs torch and transformers alone, and lies beside their weights.

For a decoder of transformers, as LlamaConfig and LlamaForCausalLM, it has SlimLlamaConfig and SlimLlamaForCausalLM:
the same but for what `per_layer_config` in config.json says of each layer: `num_attention_heads`,
`num_key_value_heads`, `intermediate_size`, and whether its output projections have biases that the others lack.
`intermediate_size` is always each layer's own, and null for the whole: from that no other class can build a model, so
none can load these weights without a part of them.
"""

import transformers
from huggingface_hub.dataclasses import strict
from torch import nn

PREFIX = "Slim"
# Before the family's own model_type.
MODEL_TYPE = "slimcore_"


def __getattr__(name):
    """Make SlimXConfig or SlimXForCausalLM from transformers' X on first use."""
    if name in globals():
        return globals()[name]
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _config_class(name, stock) if name.endswith("Config") else _model_class(name, stock)
    # Saving then copies this file beside the weights, and names it in config.json.
    made.register_for_auto_class("AutoConfig" if name.endswith("Config") else "AutoModelForCausalLM")
    globals()[name] = made
    return made


def _config_class(name, stock):
    """`stock`, a config class, for layers that may differ in width."""

    def new(cls, *_args, **_kwargs):
        # The model class is made with the first config, not before: it imports the family's modules.
        __getattr__(name.removesuffix("Config") + "ForCausalLM")
        return object.__new__(cls)

    return strict(
        type(
            name,
            (stock,),
            {
                "__module__": __name__,
                "__doc__": f"{stock.__name__} for layers that differ in width.",
                "__annotations__": {"intermediate_size": int | None, "o_proj_bias": bool, "down_proj_bias": bool},
                "__new__": new,
                "model_type": MODEL_TYPE + stock.model_type,
                "intermediate_size": None,
                "o_proj_bias": False,
                "down_proj_bias": False,
                "validate_architecture": _validate_architecture,
                "validate_rope": lambda config: stock.validate_rope(config.per_layer_config[0]),
            },
        )
    )


def _validate_architecture(config):
    """Heads are shared out evenly among KV heads; unlike in the stock class, they need not divide the hidden size."""
    for index, layer in enumerate(config.per_layer_config):
        heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(f"layer {index}: {heads} heads cannot be shared out evenly among {kv_heads} KV heads")


def _model_class(name, stock):
    """`stock`, a class for causal language models, that builds each layer as its config says."""

    def build(self, config):
        own, first = config.to_dict(), config.per_layer_config[0]
        # The stock class builds layers of one width, and must see no other.
        config.per_layer_config = None
        config.intermediate_size = first.intermediate_size
        try:
            stock.__init__(self, config)
        finally:
            config.intermediate_size = own["intermediate_size"]
            config.per_layer_config = own.get("per_layer_config")
        # It reads what all layers share, and would ask the whole for widths as it computes that anew.
        self.model.rotary_emb.config = first
        for index, layer in enumerate(self.model.layers):
            _resize(layer, config.per_layer_config[index])

    config_class = __getattr__(PREFIX + stock.config_class.__name__)
    doc = f"{stock.__name__} for layers that differ in width."
    namespace = {"__module__": __name__, "__doc__": doc, "__init__": build, "config_class": config_class}
    made = type(name, (stock,), namespace)
    transformers.AutoModelForCausalLM.register(config_class, made, exist_ok=True)
    return made


def _resize(layer, config):
    """Give a layer the projections that its own config asks for; their values are still to be loaded."""
    attention, mlp, channels = layer.self_attn, layer.mlp, config.intermediate_size
    queries = config.num_attention_heads * attention.head_dim
    keys = config.num_key_value_heads * attention.head_dim
    for parent, child, inputs, outputs, bias in (
        (attention, "q_proj", None, queries, False),
        (attention, "k_proj", None, keys, False),
        (attention, "v_proj", None, keys, False),
        (attention, "o_proj", queries, None, config.o_proj_bias),
        (mlp, "gate_proj", None, channels, False),
        (mlp, "up_proj", None, channels, False),
        (mlp, "down_proj", channels, None, config.down_proj_bias),
    ):
        old = getattr(parent, child)
        has = (old.in_features, old.out_features, old.bias is not None)
        wanted = (inputs or old.in_features, outputs or old.out_features, bias or old.bias is not None)
        if wanted != has:
            setattr(parent, child, nn.Linear(*wanted, device=old.weight.device, dtype=old.weight.dtype))
    mlp.intermediate_size = channels
