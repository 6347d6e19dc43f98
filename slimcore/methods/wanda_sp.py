"""Wanda-sp, the structured form of Wanda (Sun et al. 2023, arXiv 2306.11695) that FLAP compares with.

Input j of o_proj or down_proj: mean_out |W[out, j]| sqrt(mean over windows of its sum of squares). A channel's score
is its input's, a KV group's the sum over its inputs; unit: that of activations.
"""

from __future__ import annotations

import torch

from slimcore import moments
from slimcore.methods import Calibration, Inside
from slimcore.structure import CHANNEL_COLUMNS, GROUP_COLUMNS, Decoder, layer_shape, projection


@torch.no_grad()
def score(view: Decoder, on: Calibration) -> list[Inside]:
    """|Weight| times norm of its input, for each KV group and channel."""
    found = []
    for layer, moment in moments.of_each_layer(view, on.ids, on.batch_size, on.arithmetic, "wanda-sp"):
        out, down = projection(layer, GROUP_COLUMNS).weight, projection(layer, CHANNEL_COLUMNS).weight
        attention = moments.weighted_norm(out, moment.o, len(on.ids))
        groups = attention.view(layer_shape(layer).kv_groups, -1).sum(1)
        found.append(Inside(groups, moments.weighted_norm(down, moment.down, len(on.ids))))
    return found
