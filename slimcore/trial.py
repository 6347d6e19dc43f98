"""What a healed model is worth on windows that no fit has seen, of each kind of text, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimcore import layerwise
from slimcore.errors import UnsupportedModelError
from slimcore.plan import Plan
from slimcore.progress import progress
from slimcore.refits import Place, Refit, set_
from slimcore.structure import Decoder, projection

SHARES = (1.0, 0.5, 0.25)  # of the changes, tried in turn

Held = Mapping[str, Sequence[Tensor]]  # batches (N, T) of token ids of each kind of text
Perplexities = dict[str, float]  # of each kind


@dataclass(frozen=True)
class Verdict:
    """How much of the changes to keep, and the perplexity of each kind without and with that; with all where none."""

    kept: float  # one of SHARES, or 0
    before: Perplexities
    after: Perplexities


def judge(view: Decoder, plan: Plan, refits: Sequence[Refit], held: Held, dtype: torch.dtype) -> Verdict:
    """Find the largest share of the changes with which no kind of text is worse off than without them.

    The model is left as it is. Raises UnsupportedModelError where the cut model's loss is not finite in `dtype`.
    """
    before, whole = perplexities(view, plan, refits, held, (0.0, 1.0), dtype)
    wrong = next((kind for kind, value in before.items() if math.isnan(value)), None)
    if wrong is not None:
        raise UnsupportedModelError(
            f"the cut model computes values that are not finite in {dtype} (on {wrong}): heal a float32 copy of it, and"
            " prune less if that is not finite either"
        )
    for share in SHARES:
        after = whole if share == 1 else perplexities(view, plan, refits, held, (share,), dtype)[0]
        if all(after[kind] <= before[kind] for kind in before):
            return Verdict(share, before, after)
    return Verdict(0.0, before, whole)


@torch.no_grad()
def perplexities(
    view: Decoder, plan: Plan, refits: Sequence[Refit], held: Held, shares: Sequence[float], dtype: torch.dtype
) -> list[Perplexities]:
    """Perplexity of each kind, as of the cut model with each of these shares of the changes."""
    parts = [(kind, ids) for kind, batches in held.items() for ids in batches]
    entries = [layerwise.enter(view, ids, dtype) for _, ids in parts]
    states = [[entry.hidden for entry in entries]] * len(shares)
    first = min(refit.layer for refit in refits)
    for index in progress(plan.keep, "heal, tried"):
        here = Place(index, view.layers[index], [entry.arguments[index] for entry in entries])
        here = here.cut(plan) if index in plan.width else here
        own = [refit for refit in refits if refit.layer == index]
        following = []
        for share, hidden in zip(shares if index >= first else shares[:1], states, strict=False):
            with _changed(here.layer, own, share), layerwise.computing_in(here.layer, dtype):
                following.append(here.run(hidden))
        states = following if index >= first else following * len(shares)
    return [_of_each_kind(view, parts, hidden) for hidden in states]


def _of_each_kind(view: Decoder, parts: Sequence[tuple[str, Tensor]], states: Sequence[Tensor]) -> Perplexities:
    """Perplexity of each kind from the last layer's outputs; infinite where it is beyond a float."""
    losses: dict[str, list[Tensor]] = {}
    for (kind, ids), hidden in zip(parts, states, strict=True):
        losses.setdefault(kind, []).append(layerwise.next_token_nll(view, hidden, ids).double().flatten().cpu())
    return {kind: float(torch.cat(own).mean().exp()) for kind, own in losses.items()}


@contextmanager
def _changed(layer: nn.Module, refits: Sequence[Refit], share: float) -> Iterator[None]:
    """Hold a layer's weights with a share of their changes inside the block."""
    had = {name: projection(layer, name).weight.data for name in {refit.projection for refit in refits}}
    set_(layer, refits, share)
    try:
        yield
    finally:
        for name, data in had.items():
            projection(layer, name).weight.data = data
