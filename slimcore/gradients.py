"""Gradients of the loss, one layer at a time, from the last to the first.

Each layer is run again from its stored input. A layer's gradient over all windows is complete, is used and is freed
before the next exists: peak memory is the weights, one layer's gradients, one batch's activations of one layer, and
the hidden states between layers (L, N, T, H). Half-precision weights are computed with in float32, one layer at a
time, since their gradients underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.progress import progress
from slimcore.structure import Decoder


@dataclass(frozen=True)
class Gradient:
    """Of the mean next-token cross-entropy, for one weight; float32, in the weight's shape."""

    first: Tensor
    squares: Tensor | None  # mean over windows of the squared gradient of each window's own loss


def of_each_layer(
    view: Decoder,
    ids: Tensor,
    batch_size: int,
    weights_of: Callable[[nn.Module], dict[str, Tensor]],
    what: str,
    *,
    wanted: range | None = None,
    squares: bool = False,
) -> Iterator[tuple[int, dict[str, tuple[Tensor, Gradient]]]]:
    """Yield each wanted layer's index and, for each of its weights by name, the weight in float32 and its gradient.

    `ids` (N, T). `wanted`: None is every layer; below the first of them nothing is run backward, above the last no
    weight's gradient is taken. `squares` takes gradients window by window, whatever the `batch_size`.
    Raises UnsupportedModelError where the loss's gradient is not finite.
    """
    wanted = range(len(view.layers)) if wanted is None else wanted
    parts = layerwise.batches(ids, 1 if squares else batch_size)
    inputs, arguments, upstream = [], [], []
    for batch in parts:
        entry, hidden = _inputs_of_each_layer(view, batch, wanted.start, what)
        inputs.append(hidden)
        arguments.append(entry.arguments)
        gradient = layerwise.summed_nll_gradient(view, hidden.pop(), batch)
        if not bool(gradient.isfinite().all()):
            raise layerwise.not_finite(view, batch, torch.float32)
        upstream.append(gradient.div_(ids.shape[0] * (ids.shape[1] - 1)))
    backward = range(len(view.layers) - 1, wanted.start - 1, -1)
    for index in progress(backward, f"{what}, gradients", total=len(backward)):
        layer = view.layers[index]
        with layerwise.computing_in(layer, torch.float32), _differentiable(layer):
            named = weights_of(layer) if index in wanted else {}
            weights = list(named.values())
            totals: list[Gradient] = []
            for part in range(len(parts)):
                upstream[part], *gradients = _backward(
                    layer, inputs[part].pop(), arguments[part][index], upstream[part], weights
                )
                if part == 0:
                    totals = [Gradient(g, torch.zeros_like(g) if squares else None) for g in gradients]
                for total, gradient in zip(totals, gradients, strict=True):
                    if total.squares is not None:
                        # A window's own loss is N times its share of the mean.
                        total.squares.addcmul_(gradient, gradient, value=ids.shape[0])
                    if part:
                        total.first.add_(gradient)
            if named:
                pairs = zip(weights, totals, strict=True)
                yield index, dict(zip(named, ((w.detach(), total) for w, total in pairs), strict=True))


@torch.no_grad()
def _inputs_of_each_layer(view: Decoder, ids: Tensor, first: int, what: str) -> tuple[layerwise.Entry, list[Tensor]]:
    """Hidden states (N, T, H) before each layer from the `first` on, and after the last."""
    entry = layerwise.enter(view, ids, torch.float32)
    hidden = [entry.hidden]
    pairs = zip(view.layers, entry.arguments, strict=True)
    for index, (layer, arguments) in enumerate(progress(pairs, f"{what}, forward", total=len(view.layers))):
        with layerwise.computing_in(layer, torch.float32):
            following = layerwise.run(layer, hidden[-1], arguments)
        if index < first:
            hidden.clear()
        hidden.append(following)
    return entry, hidden


def _backward(
    layer: nn.Module, hidden: Tensor, arguments: dict[str, object], upstream: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients with respect to the layer's input and to `weights`, nothing stored on the model."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        output = layerwise.run(layer, hidden, arguments)
        return torch.autograd.grad(output, [hidden, *weights], grad_outputs=upstream.to(output.device))


@contextmanager
def _differentiable(layer: nn.Module) -> Iterator[None]:
    """Let a layer's parameters take gradients inside the block, whether or not they were frozen."""
    frozen = [p for p in layer.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
