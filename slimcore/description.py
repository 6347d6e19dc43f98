"""describe_(model): its config and class tell the truth about its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from slimcore import modeling_slimcore as slim
from slimcore.structure import DOWN, OUT, decoder, family_of, layer_shapes, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def describe_(model: PreTrainedModel) -> None:
    """Make config and class those of the model as it is: the stock ones where they can build it, else slimcore's.

    Slimcore's are the stock ones with `per_layer_config`. Config and model stay the objects they are.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    view, config = decoder(model), model.config
    shapes = layer_shapes(view)
    stock_config = CONFIG_MAPPING[family_of(config)]
    stock_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]
    slim_config = getattr(slim, slim.PREFIX + stock_config.__name__)
    slim_model = getattr(slim, slim.PREFIX + stock_model.__name__)

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
    config.num_hidden_layers = len(shapes)
    config.head_dim = shapes[0].head_dim
    # What most layers have stands for all, and the others are told apart from it.
    for name, value in max(entries, key=entries.count).items():
        setattr(config, name, value)
    config.__class__, model.__class__ = stock_config, stock_model
    for name in ("o_proj_bias", "down_proj_bias", "auto_map"):
        config.__dict__.pop(name, None)
    if _builds(stock_model, config, view.layers):
        return
    for entry, layer in zip(entries, view.layers, strict=True):
        entry |= {"o_proj_bias": _has_bias(layer, OUT), "down_proj_bias": _has_bias(layer, DOWN)}
    config.__class__, model.__class__ = slim_config, slim_model
    config.o_proj_bias = config.down_proj_bias = False
    config.per_layer_config = dict(enumerate(entries))


def _builds(model_class: Any, config: PretrainedConfig, layers: nn.ModuleList) -> bool:
    """Whether the stock class takes `config` and then makes these very layers."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    sizes = [{name: p.shape for name, p in layer.named_parameters()} for layer in layers]
    if any(size != sizes[0] for size in sizes):
        return False
    try:
        # As from_pretrained would: out of what config.json will hold.
        stored = type(config).from_dict(config.to_dict() | {"num_hidden_layers": 1, "layer_types": None})
        with torch.device("meta"):
            built = model_class(stored)
    except StrictDataclassError:  # the config class does not allow it
        return False
    return {name: p.shape for name, p in built.model.layers[0].named_parameters()} == sizes[0]


def _has_bias(layer: nn.Module, name: str) -> bool:
    return projection(layer, name).bias is not None
