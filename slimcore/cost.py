"""What a model costs, counted from its shapes: exact, and the same on the meta device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from slimcore.structure import PROJECTIONS, decoder, layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Footprint:
    """Costs of one model that need no clock."""

    layers: int
    kv_groups: int  # of all layers
    channels: int  # of all layers
    parameters: int  # tied weights counted once
    block_parameters: int  # of all layers, without embedding, final norm and head
    weight_bytes: int
    flops_per_token: int  # matrix products of one token: layers and head, 2 FLOPs a multiply-add
    flops_per_position: int  # attention, on top, for each position a token attends to
    kv_bytes_per_token: int  # key and value cache, all layers

    def as_dict(self) -> dict[str, int]:
        """The fields by name, for JSON."""
        return asdict(self)


def footprint(model: PreTrainedModel) -> Footprint:
    """Count `model`, on any device, meta included."""
    view = decoder(model)
    shapes = layer_shapes(view)
    projections = [cast(nn.Linear, layer.get_submodule(p)) for layer in view.layers for p in PROJECTIONS]
    by_name = [[cast(nn.Linear, layer.get_submodule(f"self_attn.{p}_proj")) for p in "qkv"] for layer in view.layers]
    return Footprint(
        layers=len(view.layers),
        kv_groups=sum(shape.kv_groups for shape in shapes),
        channels=sum(shape.channels for shape in shapes),
        parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=sum(shape.parameters for shape in shapes),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        flops_per_token=2 * (sum(p.weight.numel() for p in projections) + view.head.weight.numel()),
        # q.K^T and attention.V: each 2 FLOPs a query channel and position.
        flops_per_position=sum(4 * q.weight.shape[0] for q, _, _ in by_name),
        kv_bytes_per_token=sum(
            (k.weight.shape[0] + v.weight.shape[0]) * k.weight.element_size() for _, k, v in by_name
        ),
    )


def human(count: float, unit: str = "") -> str:
    """A short figure in decimal units, as the field writes sizes: 4916965376 -> '4.9B', 98974080 -> '99M'."""
    for limit, suffix in ((1e12, "T"), (1e9, "B" if not unit else "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            value = count / limit
            return f"{value:.1f}{suffix}{unit}" if suffix in "BGT" or unit else f"{value:.0f}{suffix}"
    return f"{count:.0f}{unit}"
