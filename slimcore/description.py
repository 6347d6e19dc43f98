"""What a config and a class say of a model's layers, made true after a cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slimcore import modeling_slimcore as slim
from slimcore.errors import UnsupportedModelError
from slimcore.registration import register
from slimcore.structure import DOWN, OUT, PER_LAYER_CONFIG, decoder, family_of, layer_shapes

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def check_describable(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for a model that transformers' class, or slimcore's, could not build anew.

    That is one of a class derived from theirs, or with anything further in it: their configs could not tell of it.
    """
    stock, slim_class = _classes(model.config)
    for own, theirs, ours in (
        (type(model), stock, slim_class),
        (type(model.config), stock.config_class, slim_class.config_class),
    ):
        # By name: slimcore's may have come with a checkpoint.
        if own is not theirs and own.__name__ != ours.__name__:
            raise UnsupportedModelError(
                f"{own.__name__} is not transformers' {theirs.__name__}: load the model as that to cut inside layers;"
                " whole layers can be cut from any class"
            )
    biases = {f"model.layers.N.{name}.bias" for name in (OUT, DOWN)}
    further = sorted(_parts(model) - _parts(_built(type(model), model.config)) - biases)
    if further:
        raise UnsupportedModelError(
            f"{further[0]} is not in transformers' {stock.__name__}, and would be lost where layers differ in width:"
            " merge adapters first (PEFT: merge_and_unload()), or cut whole layers"
        )


def keep_layers_(config: PretrainedConfig, keep: Sequence[int]) -> None:
    """Make `config` that of a model of its layers `keep`, in this order; its class stays."""
    stored, count = config.to_dict(), config.num_hidden_layers
    config.per_layer_config = None
    config.num_hidden_layers = len(keep)
    for name in PER_LAYER_CONFIG:
        entries = stored.get(name)
        if isinstance(entries, list | tuple) and len(entries) == count:
            setattr(config, name, [entries[i] for i in keep])
    widths = {int(layer): entry for layer, entry in (stored.get("per_layer_config") or {}).items()}
    if widths:
        config.per_layer_config = {new: widths[old] for new, old in enumerate(keep) if old in widths}


def describe_(model: PreTrainedModel) -> None:
    """Make config and class those of the widths that `model` has: the stock ones where they can build it.

    Else they are slimcore's: the stock ones with `per_layer_config`. Config and model stay the objects they are, so
    that whoever holds one sees the change.
    """
    view, config = decoder(model), model.config
    shapes = layer_shapes(view)
    stock, slim_class = _classes(config)
    entries: list[dict[str, Any]] = [
        {
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_groups,
            "intermediate_size": shape.channels,
        }
        for shape in shapes
    ]
    for layer, shape in zip(view.layers, shapes, strict=True):
        layer.mlp.intermediate_size = shape.channels  # type: ignore[union-attr]
    config.per_layer_config = None
    # What most layers have stands for all, and the others are told apart from it.
    for name, value in max(entries, key=entries.count).items():
        setattr(config, name, value)
    width = shapes[0].head_dim
    if width != (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads):
        config.head_dim = width
    for name in ("o_proj_bias", "down_proj_bias", "auto_map"):
        config.__dict__.pop(name, None)
    config.__class__ = stock.config_class
    view.backbone.rotary_emb.config = config  # type: ignore[union-attr]
    if _builds(stock, config, view.layers):
        model.__class__ = stock
        return
    for entry, shape in zip(entries, shapes, strict=True):
        entry |= {"o_proj_bias": shape.o_bias, "down_proj_bias": shape.down_bias}
    config.__class__, model.__class__ = slim_class.config_class, slim_class
    config.o_proj_bias = config.down_proj_bias = False
    config.head_dim, config.intermediate_size = width, None
    config.per_layer_config = dict(enumerate(entries))
    # What all layers share stands in each; the rotary embedding may read no width of the whole.
    view.backbone.rotary_emb.config = config.per_layer_config[0]  # type: ignore[union-attr]


def _classes(config: PretrainedConfig) -> tuple[Any, Any]:
    """The family's class for causal language models in transformers, and slimcore's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    register()
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family_of(config)]]
    return stock, getattr(slim, slim.PREFIX + stock.__name__)


def _built(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The first layer of the model that class `kind` makes of what config.json will hold, on the meta device."""
    import torch

    stored = type(config).from_dict(config.to_dict())
    keep_layers_(stored, (0,))
    with torch.device("meta"):
        built: PreTrainedModel = kind(stored)
    return built


def _builds(stock: Any, config: PretrainedConfig, layers: nn.ModuleList) -> bool:
    """Whether the stock class takes `config` and then makes these very layers."""
    from huggingface_hub.errors import StrictDataclassError

    sizes = [{name: p.shape for name, p in layer.named_parameters()} for layer in layers]
    if any(size != sizes[0] for size in sizes):
        return False
    try:
        built = _built(stock, config)
    except StrictDataclassError:  # the config class does not allow it
        return False
    return {name: p.shape for name, p in decoder(built).layers[0].named_parameters()} == sizes[0]


def _parts(model: PreTrainedModel) -> set[str]:
    """Names of what `model` stores, and of its modules with their classes; one name serves all layers."""
    modules = {f"{name}, a {type(m).__module__}.{type(m).__qualname__}," for name, m in model.named_modules() if name}
    return {re.sub(r"(?<=^model\.layers\.)\d+", "N", name) for name in modules | set(model.state_dict())}
