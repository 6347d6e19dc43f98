"""Taylor+ criterion of Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834, section 3.1).

S = W dL/dW, signed, L the mean next-token cross-entropy over all calibration tokens; score of a layer = sum |S| over
its seven projections and two norms (no embedding, head, final norm or bias); unit: nats.

Gradients are taken layer by layer from the last to the first, each layer being run again from its stored input. A
layer's gradient over all windows is complete, is used and is freed before the next exists: peak memory is the weights,
one layer's gradients, one batch's activations of one layer, and the hidden states between layers (L, N, T, H).
Half-precision weights are computed with in float32, one layer at a time, since their gradients underflow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.progress import progress
from slimcore.structure import Decoder, scored_weights


def score(view: Decoder, ids: Tensor | None, batch_size: int) -> list[float]:
    """Sum of |weight x gradient| of each layer."""
    assert ids is not None
    parts = layerwise.batches(ids, batch_size)
    inputs, arguments, upstream = [], [], []
    for batch in parts:
        entry, hidden = _inputs_of_each_layer(view, batch)
        inputs.append(hidden)
        arguments.append(entry.arguments)
        upstream.append(layerwise.summed_nll_gradient(view, hidden.pop(), batch))
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    values = [0.0] * len(view.layers)
    for index in progress(reversed(range(len(view.layers))), "depth-taylor, gradients", total=len(view.layers)):
        layer = view.layers[index]
        with layerwise.computing_in(layer, torch.float32), _differentiable(layer):
            weights = list(scored_weights(layer).values())
            totals = [torch.zeros_like(w) for w in weights]
            for part in range(len(parts)):
                gradients = _backward(layer, inputs[part].pop(), arguments[part][index], upstream[part], weights)
                upstream[part] = gradients[0]
                for total, gradient in zip(totals, gradients[1:], strict=True):
                    total.add_(gradient)
            products = (w.detach() * g for w, g in zip(weights, totals, strict=True))
            values[index] = sum(float(s.abs().sum(dtype=torch.float64)) for s in products) / tokens
    return values


@torch.no_grad()
def _inputs_of_each_layer(view: Decoder, ids: Tensor) -> tuple[layerwise.Entry, list[Tensor]]:
    """Hidden states (N, T, H) before each layer, and after the last."""
    entry = layerwise.enter(view, ids, torch.float32)
    hidden = [entry.hidden]
    pairs = zip(view.layers, entry.arguments, strict=True)
    for layer, arguments in progress(pairs, "depth-taylor, forward", total=len(view.layers)):
        with layerwise.computing_in(layer, torch.float32):
            hidden.append(layerwise.run(layer, hidden[-1], arguments))
    return entry, hidden


def _backward(
    layer: nn.Module, hidden: Tensor, arguments: dict[str, object], upstream: Tensor, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients with respect to the layer's input and to `weights`, nothing stored on the model."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        output = layerwise.run(layer, hidden, arguments)
        return torch.autograd.grad(output, [hidden, *weights], grad_outputs=upstream.to(output.device))


class _differentiable:  # noqa: N801 - reads as the statement it is
    """Let a layer's parameters take gradients inside the block, whether or not they were frozen."""

    def __init__(self, layer: nn.Module) -> None:
        self.frozen = [p for p in layer.parameters() if not p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self.frozen:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter in self.frozen:
            parameter.requires_grad_(False)
