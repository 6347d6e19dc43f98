"""One view over a decoder: its layers, what can be cut from them, its ends. The only file that knows a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from slimcore.errors import UnsupportedModelError
from slimcore.scores import LayerShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Families of transformers whose layers are q, k, v and o projections and a gated MLP of three.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
QUERY, KEY, VALUE, OUT = (f"self_attn.{p}_proj" for p in "qkvo")
GATE, UP, DOWN = (f"mlp.{p}_proj" for p in ("gate", "up", "down"))
PROJECTIONS = (QUERY, KEY, VALUE, OUT, GATE, UP, DOWN)
NORMS = ("input_layernorm", "post_attention_layernorm")

# A KV group is rows of the first and columns of the second, a channel is one of each.
GROUP_ROWS, GROUP_COLUMNS = (QUERY, KEY, VALUE), OUT
CHANNEL_ROWS, CHANNEL_COLUMNS = (GATE, UP), DOWN

# Rotary embeddings that hold `factor` times the positions that the config may name.
STRETCHED_ROPE = ("linear", "dynamic", "yarn")
_UNWRAP = "take the model out of what wraps it, and merge adapters first (PEFT: merge_and_unload())"

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

    @property
    def context(self) -> int | None:
        """Tokens of a text that the model can hold, by its config; None: the config does not say."""
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        if positions is None or rope.get("rope_type") not in STRETCHED_ROPE:
            return positions
        return max(positions, int(rope.get("original_max_position_embeddings", positions) * rope["factor"]))


def decoder(model: PreTrainedModel) -> Decoder:
    """View `model` as a decoder. Raises UnsupportedModelError for a family that is not known, or a wrapped model."""
    check_family(model.config)
    try:
        backbone = cast(nn.Module, model.model)
        return Decoder(
            model=model,
            backbone=backbone,
            embedding=cast(nn.Embedding, backbone.embed_tokens),
            layers=cast(nn.ModuleList, backbone.layers),
            norm=cast(nn.Module, backbone.norm),
            head=cast(nn.Linear, model.lm_head),
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not laid out as a causal language model of transformers ({error}): {_UNWRAP}"
        ) from None


def family_of(config: PretrainedConfig) -> str:
    """The family's name in transformers, of models whose layers differ in width too."""
    from slimcore.modeling_slimcore import MODEL_TYPE

    return str(config.model_type).removeprefix(MODEL_TYPE)


def check_family(config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError unless slimcore knows the family of `config`."""
    if family_of(config) not in FAMILIES:
        raise UnsupportedModelError(
            f"model family {config.model_type!r} is not supported (supported: {', '.join(FAMILIES)})"
        )


def check_weights(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError unless every weight lies on a device that holds it."""
    missing = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if missing is not None:
        raise UnsupportedModelError(
            f"{missing} is on the meta device, without values: load the model whole onto its devices"
            " (unscored() counts what a cut leaves without weights)"
        )


def projection(layer: nn.Module, name: str) -> nn.Linear:
    """One of PROJECTIONS."""
    return cast(nn.Linear, layer.get_submodule(name))


def projection_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The weights that what is inside a layer is scored on: seven projections, no biases."""
    return {name: projection(layer, name).weight for name in PROJECTIONS}


def scored_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The weights a layer's importance is taken on: seven projections and two norms, no biases."""
    return projection_weights(layer) | {name: cast(Tensor, layer.get_submodule(name).weight) for name in NORMS}


def layer_parameters(layer: nn.Module) -> int:
    """Parameters of one layer, biases and norms included."""
    return sum(p.numel() for p in layer.parameters())


def head_dim(layer: nn.Module) -> int:
    """Channels of one attention head."""
    return int(cast(Any, layer.self_attn).head_dim)


def layer_shape(layer: nn.Module, index: int = 0) -> LayerShape:
    """Layer `index` in numbers.

    Raises UnsupportedModelError where a projection is wrapped, or its heads cannot be shared out among KV heads.
    """
    width, parts = head_dim(layer), {name: projection(layer, name) for name in PROJECTIONS}
    for name, part in parts.items():
        if not isinstance(part, nn.Linear):
            raise UnsupportedModelError(
                f"layer {index}: {name} is a {type(part).__module__}.{type(part).__qualname__}, not torch's nn.Linear:"
                f" {_UNWRAP}"
            )
    queries, keys = parts[QUERY].weight.shape[0], parts[KEY].weight.shape[0]
    heads, groups = queries // width, keys // width
    if queries % width or keys % width or heads % groups:
        raise UnsupportedModelError(
            f"layer {index} has {queries / width:g} query heads for {keys / width:g} KV heads of {width}:"
            " the heads must divide evenly among the KV heads"
        )

    def of_one(rows: Sequence[str], columns: str, count: int) -> int:
        biases = [b for name in rows if (b := parts[name].bias) is not None]
        return sum(p.numel() for p in (*(parts[n].weight for n in (*rows, columns)), *biases)) // count

    channels = parts[GATE].weight.shape[0]
    return LayerShape(
        parameters=layer_parameters(layer),
        hidden=parts[OUT].weight.shape[0],
        head_dim=width,
        heads=heads,
        kv_groups=groups,
        kv_group_parameters=of_one(GROUP_ROWS, GROUP_COLUMNS, groups),
        channels=channels,
        channel_parameters=of_one(CHANNEL_ROWS, CHANNEL_COLUMNS, channels),
        o_bias=parts[OUT].bias is not None,
        down_bias=parts[DOWN].bias is not None,
    )


def layer_shapes(view: Decoder) -> tuple[LayerShape, ...]:
    """Every layer in numbers. Raises UnsupportedModelError."""
    return tuple(layer_shape(layer, index) for index, layer in enumerate(view.layers))


def owned_sums(name: str, matrix: Tensor, *, absolute: bool = False) -> Tensor:
    """Sum of `matrix`, shaped as the weight of projection `name`, over each row, or column, that a structure owns.

    `absolute` sums |matrix|, without a copy of it.
    """
    own = 0 if name in (GROUP_COLUMNS, CHANNEL_COLUMNS) else 1
    return torch.linalg.vector_norm(matrix, 1, dim=own) if absolute else matrix.sum(own)


def sums_inside(shape: LayerShape, members: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over each KV group (kv_groups,), and over each channel (channels,), of what its members have.

    `members`: for each projection a value for each of its rows, or columns, that a structure owns: (rows,) of q, k, v,
    gate, up; (columns,) of o and down. The query heads of KV group c are heads c n_rep .. (c + 1) n_rep - 1.
    """
    groups = [members[name].view(shape.kv_groups, -1).sum(1) for name in (*GROUP_ROWS, GROUP_COLUMNS)]
    channels = [members[name] for name in (*CHANNEL_ROWS, CHANNEL_COLUMNS)]
    return torch.stack(groups).sum(0), torch.stack(channels).sum(0)


def renumber_(model: PreTrainedModel) -> None:
    """Make every layer's index equal to its position: the KV cache is addressed by it."""
    for index, layer in enumerate(decoder(model).layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - mypy takes a module's attributes for tensors


def restore_buffers_(model: PreTrainedModel) -> None:
    """Recompute what no weight stores, after `to_empty`: rotary frequencies, and Gemma's scale of embeddings."""
    view = decoder(model)
    rotary = cast(nn.Module, view.backbone.rotary_emb)
    with next(model.parameters()).device:
        view.backbone.rotary_emb = type(rotary)(config=rotary.config)
    scale = getattr(view.embedding, "scalar_embed_scale", None)
    if scale is not None:
        cast(Tensor, view.embedding.embed_scale).fill_(scale)
