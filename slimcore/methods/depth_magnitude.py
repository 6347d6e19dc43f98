"""Magnitude+ criterion of Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834, section 3.1).

Score of a layer = sum |W| over its seven projections and two norms; unit: that of the weights.
"""

from __future__ import annotations

import torch

from slimcore.methods import Calibration
from slimcore.structure import Decoder, scored_weights


@torch.no_grad()
def score(view: Decoder, _on: Calibration) -> list[float]:
    """Sum of |weight| of each layer; uses no tokens."""
    return [
        sum(float(w.abs().sum(dtype=torch.float64)) for w in scored_weights(layer).values()) for layer in view.layers
    ]
