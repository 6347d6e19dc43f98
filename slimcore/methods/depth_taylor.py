"""Taylor+ criterion of Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834, section 3.1).

S = W dL/dW, signed, L the mean next-token cross-entropy over all calibration tokens; score of a layer = sum |S| over
its seven projections and two norms (no embedding, head, final norm or bias); unit: nats.
"""

from __future__ import annotations

import torch

from slimcore import gradients
from slimcore.methods import Calibration
from slimcore.structure import Decoder, scored_weights


def score(view: Decoder, on: Calibration) -> list[float]:
    """Sum of |weight x gradient| of each layer."""
    values = [0.0] * len(view.layers)
    for index, weights in gradients.of_each_layer(view, on.ids, on.batch_size, scored_weights, "depth-taylor"):
        products = (weight * gradient.first for weight, gradient in weights.values())
        values[index] = sum(float(s.abs().sum(dtype=torch.float64)) for s in products)
    return values
