"""heal_(model, plan, tokens): a cut whose loss is made up for by least squares. No training, no further parameter.

In front of each gap, a run of removed layers, stands a layer whose down projection W was the last to write to the
hidden state. With x what W reads in the pruned model, h the hidden state it leaves there, and d the dense model's after
the gap:

    D = argmin  sum over tokens of |d - h - D x|^2 / |d|^2  +  ridge |D|^2,    W <- W + D

An error counts in proportion to the state it is in: as the norms after it make it count, and so that first tokens of
windows, whose states are a hundred times the others', do not decide alone. x and h are the pruned and healed model's
own: each refit sees what is left of earlier errors.
Inside a layer that loses widths, o_proj and then down_proj are refitted in the same way, each to what the dense layer
has at that place. ReplaceMe (arXiv 2505.02819) fits a map of hidden states and folds it into W: D is then (T - 1) W,
with fewer degrees of freedom.
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.calibration import Tokens, as_ids
from slimcore.errors import PlanError, TextError, UnsupportedModelError
from slimcore.plan import Plan
from slimcore.progress import progress
from slimcore.quality import perplexity
from slimcore.structure import DOWN, NORMS, OUT, Decoder, check_weights, decoder, projection
from slimcore.surgery import check_fits, cut_, cut_inside_

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

RIDGE = 0.1  # of the mean square of what a projection reads
SMALLEST = 1e-6  # norm of a hidden state
TRIED = 16  # of the windows, before and after

States = list[Tensor]  # hidden states (N, T, H), one a batch


@torch.no_grad()
def heal_(model: PreTrainedModel, plan: Plan, tokens: Tokens | Tensor, *, batch_size: int = 8) -> Plan:
    """Cut the dense `model` in place as `prune_` does, refit what is next to each gap, and return the plan with that.

    `tokens`: calibration windows (N, T), of every kind of text that the model is for: what they lack may get worse.
    Where the windows' own perplexity does not fall, the model is left as cut, and the plan says so: a gap was too wide.
    Memory: beside the model, two streams of hidden states (N, T, H) and what one matrix reads. The model is untouched
    where an error is raised: PlanError where the plan is another model's, takes nothing away, or begins with a gap;
    TextError for too few tokens; UnsupportedModelError where a value is not finite.
    """
    view = decoder(model)
    check_weights(model)
    check_fits(view, plan)
    if not plan.removed and not plan.width:
        raise PlanError(f"{plan.method}: the plan takes nothing away: there is nothing to heal")
    if 0 in plan.removed:
        raise PlanError("the first layer goes, and none is before it to be refitted: protect it, or do not heal")
    ids = as_ids(tokens, view)
    _check_enough(plan, ids)
    was_training = model.training
    model.eval()
    try:
        refits = _walk(view, plan, layerwise.batches(ids, batch_size))
    finally:
        model.train(was_training)
    cut_(model, plan)
    sample = ids[:: -(-len(ids) // TRIED)]
    before = perplexity(model, sample).value
    cut = _set(model, plan, {(refit.layer, refit.projection): refit.weight for refit in refits})
    after = perplexity(model, sample).value
    if not after < before:
        _set(model, plan, cut)
    described = (tokens if isinstance(tokens, Tokens) else Tokens(ids)).describe()
    errors = {f"{refit.layer}.{refit.projection}": round(refit.error, 4) for refit in refits}
    healed = described | {"ridge": RIDGE, "error_left": errors, "perplexity": [before, after], "kept": after < before}
    return plan.with_healing(healed)


def _set(model: PreTrainedModel, plan: Plan, weights: dict[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Give projections of the cut `model`, by the dense model's numbers, other weights; those they had."""
    layers, had = decoder(model).layers, {}
    for (layer, name), weight in weights.items():
        linear = projection(layers[plan.keep.index(layer)], name)
        had[layer, name] = linear.weight.data
        linear.weight.data = weight.to(linear.weight.device, linear.weight.dtype)
    return had


@dataclass(frozen=True)
class _Refit:
    """New values of one matrix."""

    layer: int
    projection: str
    weight: Tensor
    error: float  # what is left of the squared error


def _check_enough(plan: Plan, ids: Tensor) -> None:
    """Raise TextError where a matrix has more inputs than there are tokens to fit it on."""
    inputs = max(max(shape.channels, shape.heads * shape.head_dim) for shape in plan.after())
    windows, length = ids.shape
    if windows * length < inputs:
        raise TextError(
            f"healing fits matrices of {inputs:,} inputs, and needs as many tokens: got {windows} windows of {length},"
            f" ask for at least {-(-inputs // length)}"
        )


def _walk(view: Decoder, plan: Plan, parts: tuple[Tensor, ...]) -> list[_Refit]:
    """Walk through the layers once, with the hidden states of the dense and of the pruned model."""
    dtype = layerwise.arithmetic(view.head.weight)
    entries = [layerwise.enter(view, ids, dtype) for ids in parts]
    dense = ours = [entry.hidden for entry in entries]  # one and the same up to the first change
    refits: list[_Refit] = []
    waiting = _Place(0, view.layers[0], [])  # the layer before the gap that the dense states are in
    for index in progress(range(max(*plan.removed, *plan.width, -1) + 1), "heal"):
        here = _Place(index, view.layers[index], [entry.arguments[index] for entry in entries])
        after_attention: States = []
        with layerwise.computing_in(here.layer, dtype):
            before, dense = dense, here.run(dense, after_attention if index in plan.width else None)
            if index in plan.width:
                here = here.cut(plan)
                refit, _ = here.refit(OUT, ours, after_attention)
                projection(here.layer, OUT).weight.data = refit.weight
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


@dataclass(frozen=True)
class _Place:
    """A layer, and what it is called with beside each batch's hidden states."""

    index: int
    layer: nn.Module
    arguments: list[dict[str, Any]]

    def cut(self, plan: Plan) -> _Place:
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

    def refit(self, name: str, states: States, targets: States) -> tuple[_Refit, States]:
        """Fit projection `name` so that the hidden states after it come near to `targets`; these hidden states."""
        linear = projection(self.layer, name)
        size, device = (linear.in_features, linear.out_features), linear.weight.device
        gram = torch.zeros(size[0], size[0], dtype=torch.float64, device=device)
        cross = torch.zeros(size, dtype=torch.float64, device=device)
        before, reads, after = 0.0, States(), States()
        with ExitStack() as hooks:
            hooks.callback(_watch(self.layer, name, reads).remove)
            if name == OUT:
                hooks.callback(_watch(self.layer, NORMS[1], after).remove)
            for number, (hidden, arguments) in enumerate(zip(states, self.arguments, strict=True)):
                output = layerwise.run(self.layer, hidden, arguments)
                if name == DOWN:
                    after.append(output)
                target = targets[number].flatten(0, 1).float()
                weight = 1 / torch.linalg.vector_norm(target, dim=1, keepdim=True).clamp_min(SMALLEST)
                read = reads[number].flatten(0, 1).float() * weight
                error = (target - after[number].flatten(0, 1).float()) * weight
                gram += (read.T @ read).double()
                cross += (read.T @ error).double()
                before += float(error.double().square().sum())
        if not bool(torch.isfinite(gram).all() and torch.isfinite(cross).all()):
            raise UnsupportedModelError(
                f"layer {self.index} computes values that are not finite in {states[0].dtype}: nothing can be fitted to"
                " them; heal a float32 copy of the model, and prune less if that is not finite either"
            )
        change, left = solve(gram, cross)
        refit = _Refit(
            self.index, name, linear.weight + change.T.to(linear.weight.dtype), 1 - left / before if before else 1.0
        )
        change = change.to(states[0].dtype)
        return refit, [h.add_(x @ change) for h, x in zip(after, reads, strict=True)]


def solve(gram: Tensor, cross: Tensor) -> tuple[Tensor, float]:
    """D (inputs, H) that minimises |E - X D|^2 + ridge |D|^2, and by how much |E - X D|^2 is below |E|^2.

    `gram` = X^T X, `cross` = X^T E, both float64; the ridge is RIDGE times the mean of gram's diagonal.
    """
    ridge = RIDGE * gram.diagonal().mean()
    if ridge == 0:
        return torch.zeros_like(cross), 0.0
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    change = torch.cholesky_solve(cross, factor)
    return change, float((change * cross).sum() + ridge * change.square().sum())


def _watch(layer: nn.Module, name: str, into: States) -> RemovableHandle:
    """Note what the part `name` of `layer` is given."""

    def note(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        into.append(arguments[0])

    return layer.get_submodule(name).register_forward_pre_hook(note)
