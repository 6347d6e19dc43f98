"""PPL criterion of Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834, section 3.1).

Score of layer i = exp(mean next-token NLL over all calibration tokens) of the model without layer i; unit: perplexity.

The models without one layer are alike up to the gap, so all are computed in one walk through the layers: layer i is
applied to the hidden states of every model whose gap lies below it, and its own input becomes one more state, that of
the model without layer i. L layers cost L (L - 1) / 2 layer runs in place of L (L - 1), and each is visited once.
Memory: L hidden states (N, T, H) of a batch. What is not finite, and a perplexity beyond any float, is refused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slimcore import layerwise
from slimcore.errors import UnsupportedModelError
from slimcore.methods import Calibration
from slimcore.progress import progress
from slimcore.structure import Decoder


@torch.no_grad()
def score(view: Decoder, on: Calibration) -> list[float]:
    """Perplexity without each layer; UnsupportedModelError where one is not finite."""
    sums = torch.zeros(len(view.layers), dtype=torch.float64)
    parts = layerwise.batches(on.ids, on.batch_size)
    for number, batch in enumerate(parts, 1):
        what = "depth-ppl" + (f" batch {number}/{len(parts)}" if len(parts) > 1 else "")
        states = _without_each_layer(view, batch, on.arithmetic, what)
        for gap, state in enumerate(progress(states, f"{what}, head")):
            nll = float(layerwise.next_token_nll(view, state, batch).double().sum())
            if not math.isfinite(nll):
                raise layerwise.not_finite(view, batch, on.arithmetic, without=gap)
            sums[gap] += nll
    count = on.ids.shape[0] * (on.ids.shape[1] - 1)
    return [_perplexity(gap, mean) for gap, mean in enumerate((sums / count).tolist())]


def _perplexity(gap: int, mean: float) -> float:
    """exp of the mean NLL; nothing is put in its place where that is beyond a float, since plans rank and print it."""
    try:
        return math.exp(mean)
    except OverflowError:
        raise UnsupportedModelError(
            f"without layer {gap} the mean loss is {mean:,.0f} nats a token, whose perplexity is beyond any float: the"
            " head's weights are out of scale; get them anew, or score by another method"
        ) from None


def _without_each_layer(view: Decoder, ids: Tensor, dtype: torch.dtype, what: str) -> list[Tensor]:
    """Last hidden states (N, T, H) of the model without layer 0, 1, ...; the full model is never finished."""
    entry = layerwise.enter(view, ids, dtype)
    dense, states = entry.hidden, list[Tensor]()
    for layer, arguments in progress(zip(view.layers, entry.arguments, strict=True), what, total=len(view.layers)):
        with layerwise.computing_in(layer, dtype):
            states = [layerwise.run(layer, state, arguments) for state in states]
            states.append(dense)
            if len(states) < len(view.layers):
                dense = layerwise.run(layer, dense, arguments)
    return states
