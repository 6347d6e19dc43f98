"""Running mean and variance of the inputs of a layer's output projections, in one pass over the calibration tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.progress import progress
from slimcore.structure import CHANNEL_COLUMNS, GROUP_COLUMNS, Decoder, projection


class Moments:
    """Mean and sum of squared deviations of C channels, updated rows at a time (Chan et al. 1983), in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.mean = torch.zeros(())  # (C,) from the first update on
        self.deviations = torch.zeros(())

    def update(self, rows: Tensor) -> None:
        """Take in `rows` (..., C)."""
        rows = rows.detach().flatten(0, -2).float()
        # A product and a norm: half the time of torch.var_mean on a CPU.
        mean = torch.full((len(rows),), 1 / len(rows), device=rows.device) @ rows
        deviations = torch.linalg.vector_norm(rows - mean, dim=0).double().square()
        mean = mean.double()
        if not self.rows:
            self.rows, self.mean, self.deviations = len(rows), mean, deviations
            return
        total, shift = self.rows + len(rows), mean - self.mean
        self.deviations += deviations + shift.square() * (self.rows * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.rows = total

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, (C,); zero after a single row."""
        return self.deviations / max(1, self.rows - 1)

    @property
    def squares(self) -> Tensor:
        """Sum of squares over the rows, (C,)."""
        return self.deviations + self.rows * self.mean.square()


def weighted_norm(weight: Tensor, moments: Moments, windows: int) -> Tensor:
    """Wanda's |W| times norm of the input, averaged over outputs (Sun et al. 2023), for each input: (C,) float64.

    The norm is the root of the mean over windows of the sum of squares over their tokens.
    """
    return weight.float().abs().mean(0).double() * (moments.squares / windows).sqrt()


@dataclass(frozen=True)
class LayerMoments:
    """What a layer's two output projections are given."""

    o: Moments
    down: Moments


@torch.no_grad()
def of_each_layer(
    view: Decoder, ids: Tensor, batch_size: int, dtype: torch.dtype, what: str
) -> Iterator[tuple[nn.Module, LayerMoments]]:
    """Walk through the layers once, from the first to the last, yielding each with its moments.

    `ids` (N, T). `dtype`: arithmetic of the layers. Memory: the hidden states of all windows (N, T, H), and one batch's
    activations of one layer. Raises UnsupportedModelError, after the last layer, where hidden states are not finite.
    """
    parts = layerwise.batches(ids, batch_size)
    entries = [layerwise.enter(view, batch, dtype) for batch in parts]
    states = [entry.hidden for entry in entries]
    for index, layer in enumerate(progress(view.layers, what, total=len(view.layers))):
        moments = LayerMoments(Moments(), Moments())
        with layerwise.computing_in(layer, dtype), _watching(layer, moments):
            for number, entry in enumerate(entries):
                states[number] = layerwise.run(layer, states[number], entry.arguments[index])
        yield layer, moments
    # What is not finite in one layer is not finite after the last.
    for batch, hidden in zip(parts, states, strict=True):
        if not bool(hidden.isfinite().all()):
            raise layerwise.not_finite(view, batch, dtype)


@contextmanager
def _watching(layer: nn.Module, moments: LayerMoments) -> Iterator[None]:
    """Update `moments` with what the layer's output projections are given inside the block."""
    watched = ((GROUP_COLUMNS, moments.o), (CHANNEL_COLUMNS, moments.down))
    with ExitStack() as hooks:
        for name, moment in watched:
            hook = projection(layer, name).register_forward_pre_hook(partial(_update, moment))
            hooks.callback(hook.remove)
        yield


def _update(moments: Moments, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
    moments.update(arguments[0])
