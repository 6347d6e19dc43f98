"""What a model costs, counted from its shapes: exact, and the same on the meta device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

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
    head_flops: int  # of flops_per_token
    vocabulary: int
    embedding_bytes: int  # of weight_bytes, read a row a token; 0 where the table is the head's too

    def as_dict(self) -> dict[str, int]:
        """The fields by name, for JSON."""
        return asdict(self)


def footprint(model: PreTrainedModel) -> Footprint:
    """Count `model`, on any device, meta included."""
    from slimcore.structure import KEY, decoder, layer_shapes, projection, projection_weights

    view = decoder(model)
    shapes = layer_shapes(view)
    projections = [weight for layer in view.layers for weight in projection_weights(layer).values()]
    head, table = view.head.weight, view.embedding.weight
    keys = [projection(layer, KEY).weight for layer in view.layers]
    return Footprint(
        layers=len(view.layers),
        kv_groups=sum(shape.kv_groups for shape in shapes),
        channels=sum(shape.channels for shape in shapes),
        parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=sum(shape.parameters for shape in shapes),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        flops_per_token=2 * (sum(weight.numel() for weight in projections) + head.numel()),
        # q.K^T and attention.V: each 2 FLOPs a query channel and position.
        flops_per_position=sum(4 * shape.heads * shape.head_dim for shape in shapes),
        kv_bytes_per_token=sum(2 * key.shape[0] * key.element_size() for key in keys),
        head_flops=2 * head.numel(),
        vocabulary=head.shape[0],
        embedding_bytes=0 if table is head else table.numel() * table.element_size(),
    )
