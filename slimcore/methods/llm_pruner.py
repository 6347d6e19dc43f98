"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627), block-wise: first- and second-order Taylor importance.

With g the gradient of the mean loss over all windows and F the mean over windows of the squared gradient of each:
`param_first` sum |w g|, `vectorize` sum over rows and columns of |sum w g|, `param_second` sum |w^2 F|, `param_mix`
sum |w g - w^2 F / 2|, over the weights of a structure; unit: nats. A head's score is the sum over its channels, a KV
group's the sum over its query heads and its key and value. Everything is computed in float32, where the second order
does not vanish. `l1` and `l2` are magnitudes, `random` is a seeded draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimcore import gradients
from slimcore.methods import UNSCORED, Calibration, Inside, magnitude
from slimcore.structure import Decoder, layer_shape, owned_sums, projection_weights, sums_inside


def score(view: Decoder, on: Calibration) -> list[Inside]:
    """Importance of each KV group and channel."""
    if on.metric in magnitude.NORMS:
        return magnitude.score(view, on)
    if on.metric == "random":
        return _random(view, on.seed)
    found: dict[int, Inside] = {}
    second = on.metric in ("param_second", "param_mix")
    for index, weights in gradients.of_each_layer(
        view, on.ids, on.batch_size, projection_weights, "llm-pruner", wanted=on.layers, squares=second
    ):
        members = {name: _members(name, weight, gradient, on.metric) for name, (weight, gradient) in weights.items()}
        found[index] = Inside(*sums_inside(layer_shape(view.layers[index]), members))
    return [found.get(index, UNSCORED) for index in range(len(view.layers))]


def _members(name: str, weight: Tensor, gradient: gradients.Gradient, metric: str) -> Tensor:
    """Importance of each row, or column, that a structure owns."""
    first = weight * gradient.first
    if metric == "vectorize":
        return owned_sums(name, first).abs()
    if metric == "param_first":
        return owned_sums(name, first, absolute=True)
    assert gradient.squares is not None
    second = weight.square() * gradient.squares
    return owned_sums(name, second if metric == "param_second" else first - second / 2, absolute=True)


def _random(view: Decoder, seed: int) -> list[Inside]:
    generator, shapes = torch.Generator().manual_seed(seed), [layer_shape(layer) for layer in view.layers]
    return [
        Inside(torch.rand(s.kv_groups, generator=generator), torch.rand(s.channels, generator=generator))
        for s in shapes
    ]
