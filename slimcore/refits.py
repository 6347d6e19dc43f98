"""The walk of healing: through the layers once, with hidden states of the dense and of the pruned model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.errors import UnsupportedModelError
from slimcore.leastsquares import Sums, fit
from slimcore.plan import Plan
from slimcore.progress import progress
from slimcore.structure import DOWN, NORMS, OUT, Decoder, projection
from slimcore.surgery import cut_inside_

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

SMALLEST = 1e-6  # norm of a hidden state

States = list[Tensor]  # hidden states (N, T, H), one a batch


@dataclass(frozen=True)
class Refit:
    """What is added to one matrix, and how that was found."""

    layer: int  # of the dense model
    projection: str
    change: Tensor  # in the weight's shape and dtype
    ridge: float | None
    left: float

    @property
    def name(self) -> str:
        """As `3.mlp.down_proj`."""
        return f"{self.layer}.{self.projection}"


def find(view: Decoder, plan: Plan, folds: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[Refit]:
    """Refit what is next to each gap, in the order of the layers; the model is left as it is.

    `folds`: batches (N, T) of token ids of each fold. `dtype`: arithmetic to run the layers in. Raises
    UnsupportedModelError where a hidden state is not finite in it.
    """
    fold_of = [number for number, batches in enumerate(folds) for _ in batches]
    entries = [layerwise.enter(view, ids, dtype) for batches in folds for ids in batches]
    dense = ours = [entry.hidden for entry in entries]  # one and the same up to the first change
    refits: list[Refit] = []
    waiting = Place(0, view.layers[0], [], fold_of)  # the layer before the gap that the dense states are in
    for index in progress(range(max(*plan.removed, *plan.width, -1) + 1), "heal"):
        here = Place(index, view.layers[index], [entry.arguments[index] for entry in entries], fold_of)
        after_attention: States = []
        with layerwise.computing_in(here.layer, dtype):
            before, dense = dense, here.run(dense, after_attention if index in plan.width else None)
            if index in plan.width:
                here = here.cut(plan)
                refit, _ = here.refit(OUT, ours, after_attention)
                set_(here.layer, [refit])
                refits.append(refit)
            if index + 1 in plan.removed and index in plan.keep:
                waiting = here
            elif index in plan.width:
                refit, ours = here.refit(DOWN, ours, dense)
                refits.append(refit)
            elif index in plan.keep:
                ours = dense if ours is before else here.run(ours)
        if index in plan.removed and index + 1 not in plan.removed:
            with layerwise.computing_in(waiting.layer, dtype):
                refit, ours = waiting.refit(DOWN, ours, dense)
            refits.append(refit)
    return refits


def set_(layer: nn.Module, refits: Sequence[Refit], share: float = 1.0) -> None:
    """Add so much of each change to a layer's weights."""
    for refit in refits:
        weight = projection(layer, refit.projection).weight
        weight.data = (weight.float() + share * refit.change.to(weight.device).float()).to(weight.dtype)


@dataclass(frozen=True)
class Place:
    """A layer, and what it is called with beside each batch's hidden states."""

    index: int
    layer: nn.Module
    arguments: list[dict[str, Any]]
    fold_of: Sequence[int] = ()  # of each batch, where something is fitted

    def cut(self, plan: Plan) -> Place:
        """The same, with a copy of the layer that is cut inside."""
        slim = deepcopy(self.layer)
        cut_inside_(slim, plan.shapes[self.index], plan.width[self.index])
        return replace(self, layer=slim)

    def run(self, states: States, after_attention: States | None = None) -> States:
        """The layer's outputs; `after_attention` takes the hidden states between its two halves."""
        with ExitStack() as hooks:
            if after_attention is not None:
                hooks.callback(_watch(self.layer, NORMS[1], after_attention).remove)
            return [layerwise.run(self.layer, h, a) for h, a in zip(states, self.arguments, strict=True)]

    def refit(self, name: str, states: States, targets: States) -> tuple[Refit, States]:
        """Fit projection `name` so that the hidden states after it come near to `targets`; these hidden states."""
        linear = projection(self.layer, name)
        size, device = (linear.in_features, linear.out_features), linear.weight.device
        sums = [Sums.none(*size, device) for _ in range(max(self.fold_of) + 1)]
        reads, after = States(), States()
        with ExitStack() as hooks:
            hooks.callback(_watch(self.layer, name, reads).remove)
            if name == OUT:
                hooks.callback(_watch(self.layer, NORMS[1], after).remove)
            for number, (hidden, arguments) in enumerate(zip(states, self.arguments, strict=True)):
                output = layerwise.run(self.layer, hidden, arguments)
                if name == DOWN:
                    after.append(output)
                sums[self.fold_of[number]].add_(*_rows(reads[number], after[number], targets[number]))
        if not all(bool(one.gram.isfinite().all() and one.cross.isfinite().all()) for one in sums):
            raise UnsupportedModelError(
                f"layer {self.index} computes values that are not finite in {states[0].dtype}: nothing can be fitted to"
                " them; heal a float32 copy of the model, and prune less if that is not finite either"
            )
        found = fit(sums)
        change = found.change.to(states[0].dtype)
        refit = Refit(self.index, name, change.T.contiguous(), found.ridge, found.left)
        return refit, [h.add_(x @ change) for h, x in zip(after, reads, strict=True)]


def _rows(read: Tensor, after: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What a projection reads, and what is missing after it, each token in proportion to its target; float32.

    A gap may end on another device than the layer before it: all is computed where that layer is.
    """
    target = target.to(after.device).flatten(0, 1).float()
    weight = 1 / torch.linalg.vector_norm(target, dim=1, keepdim=True).clamp_min(SMALLEST)
    return read.flatten(0, 1).float() * weight, (target - after.flatten(0, 1).float()) * weight


def _watch(layer: nn.Module, name: str, into: States) -> RemovableHandle:
    """Note what the part `name` of `layer` is given."""

    def note(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        into.append(arguments[0])

    return layer.get_submodule(name).register_forward_pre_hook(note)
