"""describe_(model): its config and class tell the truth about its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slimcore import modeling_slimcore as slim
from slimcore.errors import UnsupportedModelError
from slimcore.structure import decoder, family_of, layer_shapes

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def check_describable(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for a class derived from transformers' own: widths cannot be written into it."""
    stock, slim_class = _classes(model.config)
    if type(model).__name__ not in (stock.__name__, slim_class.__name__):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not transformers' {stock.__name__}: load the model as that to cut inside layers"
        )


def describe_(model: PreTrainedModel) -> None:
    """Make config and class those of the model as it is: the stock ones where they can build it, else slimcore's.

    Slimcore's are the stock ones with `per_layer_config`. Config and model stay the objects they are, so that whoever
    holds one sees the change.
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
    config.num_hidden_layers = len(shapes)
    # What most layers have stands for all, and the others are told apart from it.
    for name, value in max(entries, key=entries.count).items():
        setattr(config, name, value)
    if shapes[0].head_dim != (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads):
        config.head_dim = shapes[0].head_dim
    for name in ("o_proj_bias", "down_proj_bias", "auto_map"):
        config.__dict__.pop(name, None)
    config.__class__ = stock.config_class
    if _builds(stock, config, view.layers):
        if type(model).__name__ == slim_class.__name__:
            model.__class__ = stock
        return
    for entry, shape in zip(entries, shapes, strict=True):
        entry |= {"o_proj_bias": shape.o_bias, "down_proj_bias": shape.down_bias}
    config.__class__, model.__class__ = slim_class.config_class, slim_class
    config.o_proj_bias = config.down_proj_bias = False
    config.per_layer_config = dict(enumerate(entries))


def _classes(config: PretrainedConfig) -> tuple[Any, Any]:
    """The family's class for causal language models in transformers, and slimcore's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family_of(config)]]
    return stock, getattr(slim, slim.PREFIX + stock.__name__)


def _builds(stock: Any, config: PretrainedConfig, layers: nn.ModuleList) -> bool:
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
            built = stock(stored)
    except StrictDataclassError:  # the config class does not allow it
        return False
    return {name: p.shape for name, p in built.model.layers[0].named_parameters()} == sizes[0]
