"""One view over a decoder: its layers, its scored weights, its ends. The only file that knows a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from slimcore.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES = ("llama",)

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = ("input_layernorm", "post_attention_layernorm")

# Lists in a config that hold one entry a layer.
PER_LAYER_CONFIG = ("layer_types",)


@dataclass(frozen=True)
class Decoder:
    """The parts of a causal language model that pruning touches."""

    model: PreTrainedModel
    backbone: nn.Module  # token ids -> hidden states
    embedding: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Linear

    @property
    def vocabulary(self) -> int:
        """Token ids the model has a row for."""
        return self.embedding.num_embeddings


def decoder(model: PreTrainedModel) -> Decoder:
    """View `model` as a decoder. Raises UnsupportedModelError for a family that is not known."""
    check_family(model.config)
    backbone = cast(nn.Module, model.model)
    return Decoder(
        model=model,
        backbone=backbone,
        embedding=cast(nn.Embedding, backbone.embed_tokens),
        layers=cast(nn.ModuleList, backbone.layers),
        norm=cast(nn.Module, backbone.norm),
        head=cast(nn.Linear, model.lm_head),
    )


def check_family(config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError unless slimcore knows the family of `config`."""
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model family {config.model_type!r} is not supported (supported: {', '.join(FAMILIES)})"
        )


def scored_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The weights a layer's importance is taken on: seven projections and two norms, no biases."""
    return {name: cast(Tensor, layer.get_submodule(name).weight) for name in (*PROJECTIONS, *NORMS)}


def layer_parameters(layer: nn.Module) -> int:
    """Parameters of one layer, biases and norms included."""
    return sum(p.numel() for p in layer.parameters())


def renumber_(model: PreTrainedModel) -> None:
    """Make every layer's index equal to its position: the KV cache is addressed by it."""
    for index, layer in enumerate(decoder(model).layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - mypy takes a module's attributes for tensors


def restore_buffers_(model: PreTrainedModel) -> None:
    """Recompute what is not stored as a weight (rotary frequencies) after `to_empty`."""
    backbone = decoder(model).backbone
    rotary = cast(nn.Module, backbone.rotary_emb)
    with next(model.parameters()).device:
        backbone.rotary_emb = type(rotary)(config=model.config)
