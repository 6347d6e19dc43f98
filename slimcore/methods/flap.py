"""FLAP (An et al. 2024, arXiv 2312.11983): fluctuation of what a structure gives to the residual stream.

Over all calibration tokens, at the inputs j of o_proj and down_proj of the unpruned model: mean mu_j, unbiased
variance f_j, sum of squares s_j. Metrics: `WIFV` f_j sum_out W[out, j]^2; `IFV` f_j; `WIFN` mean_out |W[out, j]|
sqrt(s_j / windows). Attention's are squared. Each layer's attention and MLP are standardised over their channels, so
that all can stand in one list; a KV group's score is the mean over its channels. No unit.

What goes leaves its mean behind as a bias: b += W[:, gone] mu[gone].
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimcore import moments
from slimcore.methods import Calibration, Inside
from slimcore.structure import CHANNEL_COLUMNS, GROUP_COLUMNS, Decoder, layer_shape, projection


@torch.no_grad()
def score(view: Decoder, on: Calibration) -> list[Inside]:
    """Standardised fluctuation of each KV group and channel, and the mean inputs."""
    found = []
    for layer, moment in moments.of_each_layer(view, on.ids, on.batch_size, on.arithmetic, "flap"):
        out, down = projection(layer, GROUP_COLUMNS).weight, projection(layer, CHANNEL_COLUMNS).weight
        attention = _standardised(_metric(on.metric, out, moment.o, len(on.ids)).square())
        found.append(
            Inside(
                attention.view(layer_shape(layer).kv_groups, -1).mean(1),
                _standardised(_metric(on.metric, down, moment.down, len(on.ids))),
                moment.o.mean,
                moment.down.mean,
            )
        )
    return found


def _metric(name: str, weight: Tensor, moment: moments.Moments, windows: int) -> Tensor:
    """The metric `name` of each input of a projection, (inputs,) float64."""
    if name == "IFV":
        return moment.variance
    if name == "WIFV":
        return moment.variance * weight.float().square().sum(0).double()
    return moments.weighted_norm(weight, moment, windows)


def _standardised(values: Tensor) -> Tensor:
    spread = values.std() if len(values) > 1 else values.new_zeros(())
    return (values - values.mean()) / (spread if spread > 0 else 1)
