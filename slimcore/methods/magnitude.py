"""Magnitude of what is inside a layer, the baseline without data of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627).

Score of a KV group or channel = sum over its weights of |W| (`l1`) or W^2 (`l2`); unit: that of the weights, squared
for `l2`.
"""

from __future__ import annotations

import torch

from slimcore.methods import Calibration, Inside
from slimcore.structure import Decoder, layer_shape, owned_sums, projection_weights, sums_inside

NORMS = ("l1", "l2")


@torch.no_grad()
def score(view: Decoder, on: Calibration) -> list[Inside]:
    """Sum of |weight|, or of its square, over each structure; uses no tokens."""
    found = []
    for layer in view.layers:
        weights = {name: weight.float() for name, weight in projection_weights(layer).items()}
        members = {
            name: owned_sums(name, weight if on.metric == "l1" else weight.square(), absolute=True)
            for name, weight in weights.items()
        }
        found.append(Inside(*sums_inside(layer_shape(layer), members)))
    return found
