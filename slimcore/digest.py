"""Which weights a model has, and the same model without any."""

from __future__ import annotations

from copy import deepcopy
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")
Module = TypeVar("Module", bound=nn.Module)

SAMPLE = 256  # values of each parameter


@torch.no_grad()
def digest(model: nn.Module) -> str | None:
    """SHA-256 of every parameter's name, shape and 256 evenly spaced values; None where some lie on the meta device.

    Values count as float32, the dtype does not: a bfloat16 file has one digest in bfloat16 and in float32. A copy that
    was rounded, float32 to float16, has another: it scores differently. All of a 7B model would take a minute to hash,
    and what trains, heals or cuts a parameter changes nearly all of its values.
    """
    found = sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta:
            return None
        found.update(f"{name} {tuple(parameter.shape)}\0".encode())
        found.update(_sample(parameter).float().cpu().numpy().tobytes())
    return found.hexdigest()


def _sample(parameter: Tensor) -> Tensor:
    """So many values, the same distance apart."""
    values = parameter.reshape(-1)
    count = min(SAMPLE, len(values))
    return values[torch.arange(count, device=values.device) * len(values) // max(1, count)]


def without_weights(model: Model) -> Model:
    """A copy of `model` to try something on: parameters on the meta device, a config of its own, the rest shared."""
    config = deepcopy(model.config)
    empty = {p: nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}

    def copied(module: Module) -> Module:
        own = object.__new__(type(module))
        vars(own).update(vars(module))
        if vars(module).get("config") is model.config:
            vars(own)["config"] = config
        vars(own)["_parameters"] = {name: p if p is None else empty[p] for name, p in module._parameters.items()}
        vars(own)["_modules"] = {name: m if m is None else copied(m) for name, m in module._modules.items()}
        return own

    return copied(model)
