"""prune_(model, plan): the cut itself, in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from slimcore.description import check_describable, describe_, keep_layers_
from slimcore.digest import digest, without_weights
from slimcore.errors import OtherWeightsWarning, PlanError
from slimcore.kept import Width, others, owned
from slimcore.plan import Plan
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


def prune_(model: Model, plan: Plan) -> Model:
    """Remove from `model`, in place, what `plan` does not keep, and return it.

    Where the plan has means of what goes, biases of the output projections make up for them. Layers are numbered anew
    and the config tells the truth about the result, so that cached decoding, saving and loading are those of an
    ordinary smaller model. The class stays where whole layers go; it changes where the stock one cannot hold widths.
    Nothing is changed where an error is raised: PlanError where the plan is another model's, UnsupportedModelError
    where widths are cut of a class, or of layers, with more to them than transformers' own: no config could tell of
    both. Warns where the plan was made for other weights of the same shape.
    """
    check_fits(decoder(model), plan)
    return cut_(model, plan)


def check_fits(view: Decoder, plan: Plan) -> None:
    """Raise what `prune_` would, before anything is cut: PlanError with the first thing in which the models differ."""
    shapes, parameters = layer_shapes(view), sum(p.numel() for p in view.model.parameters())
    if len(shapes) != plan.num_layers:
        differs = f"{plan.num_layers} layers, the model has {len(shapes)}"
    elif parameters != plan.parameters_before:
        differs = f"{plan.parameters_before:,} parameters, the model has {parameters:,}"
    elif shapes != plan.shapes:
        index = next(i for i, pair in enumerate(zip(shapes, plan.shapes, strict=True)) if pair[0] != pair[1])
        differs = f"a layer {index} of {plan.shapes[index]}, the model's is {shapes[index]}"
    else:
        differs = ""
    if differs:
        raise PlanError(f"the plan is for {differs}: score this model and select again")
    if plan.width:
        check_describable(view.model)
    # The same cut without weights, which costs nothing: whatever it raises, the model itself is as it was.
    cut_(without_weights(view.model), plan)
    made_for = plan.weights_sha256
    has = None if made_for is None else digest(view.model)
    if has is not None and has != made_for:
        warnings.warn(
            "the plan was made for other weights of the same shape, or for a rounded copy of these: what it removes may"
            " matter here; score this model and select again",
            OtherWeightsWarning,
            stacklevel=3,
        )


@torch.no_grad()
def cut_(model: Model, plan: Plan) -> Model:
    """`prune_` without its checks, for whoever has called `check_fits`."""
    view = decoder(model)
    for index, width in plan.width.items():
        cut_inside_(view.layers[index], plan.shapes[index], width)
    if plan.removed:
        keep_layers_(model.config, plan.keep)
        view.backbone.layers = nn.ModuleList(view.layers[i] for i in plan.keep)
    renumber_(model)
    if plan.width:
        describe_(model)
    return model


def cut_inside_(layer: nn.Module, shape: LayerShape, width: Width) -> None:
    """Cut KV groups and channels of one layer in place, and add the biases that make up for their means."""
    new: list[tuple[nn.Linear, Tensor, Tensor | None]] = []
    for rows, columns, kept, size, means in (
        (GROUP_ROWS, GROUP_COLUMNS, width.kv_groups, shape.kv_groups, width.o_means),
        (CHANNEL_ROWS, CHANNEL_COLUMNS, width.channels, shape.channels, width.down_means),
    ):
        if len(kept) == size:
            continue
        for name in rows:
            linear = projection(layer, name)
            keep = _owned(kept, linear.out_features // size, linear)
            new.append((linear, linear.weight[keep], None if linear.bias is None else linear.bias[keep]))
        linear = projection(layer, columns)
        each = linear.in_features // size
        bias: Tensor | None = linear.bias
        if means:
            lost = linear.weight[:, _owned(others(kept, size), each, linear)].float()
            bias = lost @ torch.tensor(means, device=lost.device) + (0 if bias is None else bias.float())
        new.append((linear, linear.weight[:, _owned(kept, each, linear)], bias))
    # After all of them are there: a layer that does not fit into memory twice is left whole.
    for linear, weight, bias in new:
        _set_(linear, weight, bias)


def _owned(structures: Iterable[int], each: int, linear: nn.Linear) -> Tensor:
    return torch.tensor(owned(structures, each), device=linear.weight.device)


def _set_(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give `linear` other values, and sizes that are true of them: others, as LoRA, build on these."""
    trained = linear.weight.requires_grad
    linear.weight = nn.Parameter(weight, requires_grad=trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=trained)
    linear.out_features, linear.in_features = weight.shape
