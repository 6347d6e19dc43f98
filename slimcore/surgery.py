"""prune_(model, plan): the cut itself, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

from slimcore.errors import PlanError
from slimcore.plan import Plan
from slimcore.structure import PER_LAYER_CONFIG, decoder, renumber_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


def prune_(model: Model, plan: Plan) -> Model:
    """Remove from `model`, in place, what `plan` does not keep, and return it.

    Layers are numbered anew and the config tells the truth about the result, so that cached decoding, saving and
    loading are those of an ordinary smaller model. Raises PlanError, before anything is cut, where the plan is
    another model's.
    """
    view = decoder(model)
    count, parameters = len(view.layers), sum(p.numel() for p in model.parameters())
    if (count, parameters) != (plan.num_layers, plan.parameters_before):
        raise PlanError(
            f"the plan is for {plan.num_layers} layers and {plan.parameters_before:,} parameters,"
            f" the model has {count} and {parameters:,}: score this model and select again"
        )
    view.backbone.layers = nn.ModuleList(view.layers[i] for i in plan.keep)
    for name in PER_LAYER_CONFIG:
        entries = getattr(model.config, name, None)
        if isinstance(entries, list | tuple) and len(entries) == count:
            setattr(model.config, name, [entries[i] for i in plan.keep])
    model.config.num_hidden_layers = len(plan.keep)
    renumber_(model)
    return model
