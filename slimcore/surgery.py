"""prune_(model, plan): the cut itself, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from slimcore.description import check_describable, describe_, keep_layers_
from slimcore.errors import PlanError
from slimcore.plan import Plan, Width, others, owned
from slimcore.scores import LayerShape
from slimcore.structure import (
    CHANNEL_COLUMNS,
    CHANNEL_ROWS,
    GROUP_COLUMNS,
    GROUP_ROWS,
    Decoder,
    decoder,
    layer_shapes,
    projection,
    renumber_,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


@torch.no_grad()
def prune_(model: Model, plan: Plan) -> Model:
    """Remove from `model`, in place, what `plan` does not keep, and return it.

    Where the plan has means of what goes, biases of the output projections make up for them. Layers are numbered anew
    and the config tells the truth about the result, so that cached decoding, saving and loading are those of an
    ordinary smaller model. The class stays where whole layers go; it changes where the stock one cannot hold widths.
    Raises PlanError, before anything is cut, where the plan is another model's, and UnsupportedModelError where widths
    are cut of a class, or of layers, with more to them than transformers' own: no config could tell of both.
    """
    view = decoder(model)
    check_fits(view, plan)
    if plan.width:
        check_describable(model)
    for index, width in plan.width.items():
        cut_inside_(view.layers[index], plan.shapes[index], width)
    if plan.removed:
        keep_layers_(model.config, plan.keep)
        view.backbone.layers = nn.ModuleList(view.layers[i] for i in plan.keep)
    renumber_(model)
    if plan.width:
        describe_(model)
    return model


def check_fits(view: Decoder, plan: Plan) -> None:
    """Raise PlanError with the first thing in which the plan's model differs from this one."""
    shapes, parameters = layer_shapes(view), sum(p.numel() for p in view.model.parameters())
    if len(shapes) != plan.num_layers:
        differs = f"{plan.num_layers} layers, the model has {len(shapes)}"
    elif parameters != plan.parameters_before:
        differs = f"{plan.parameters_before:,} parameters, the model has {parameters:,}"
    elif shapes != plan.shapes:
        index = next(i for i, pair in enumerate(zip(shapes, plan.shapes, strict=True)) if pair[0] != pair[1])
        differs = f"a layer {index} of {plan.shapes[index]}, the model's is {shapes[index]}"
    else:
        return
    raise PlanError(f"the plan is for {differs}: score this model and select again")


def cut_inside_(layer: nn.Module, shape: LayerShape, width: Width) -> None:
    """Cut KV groups and channels of one layer in place, and add the biases that make up for their means."""
    for rows, columns, kept, size, means in (
        (GROUP_ROWS, GROUP_COLUMNS, width.kv_groups, shape.kv_groups, width.o_means),
        (CHANNEL_ROWS, CHANNEL_COLUMNS, width.channels, shape.channels, width.down_means),
    ):
        if len(kept) == size:
            continue
        for name in rows:
            linear = projection(layer, name)
            keep = _owned(kept, linear.out_features // size, linear)
            _set_(linear, linear.weight[keep], None if linear.bias is None else linear.bias[keep])
        linear = projection(layer, columns)
        each = linear.in_features // size
        bias: Tensor | None = linear.bias
        if means:
            lost = linear.weight[:, _owned(others(kept, size), each, linear)].float()
            bias = lost @ torch.tensor(means, device=lost.device) + (0 if bias is None else bias.float())
        _set_(linear, linear.weight[:, _owned(kept, each, linear)], bias)


def _owned(structures: Iterable[int], each: int, linear: nn.Linear) -> Tensor:
    return torch.tensor(owned(structures, each), device=linear.weight.device)


def _set_(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give `linear` other values, and sizes that are true of them: others, as LoRA, build on these."""
    trained = linear.weight.requires_grad
    linear.weight = nn.Parameter(weight, requires_grad=trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=trained)
    linear.out_features, linear.in_features = weight.shape
