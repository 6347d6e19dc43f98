"""heal_(model, plan, tokens): a cut whose loss is made up for by least squares. No training, no further parameter.

In front of each gap, a run of removed layers, stands a layer whose down projection W was the last to write to the
hidden state. With x what W reads in the pruned model, h the hidden state it leaves there, and d the dense model's after
the gap:

    D = argmin  sum over tokens of |d - h - D x|^2 / |d|^2  +  ridge |D|^2,    W <- W + D

An error counts in proportion to the state it is in: as the norms after it make it count, and so that first tokens of
windows, whose states are a hundred times the others', do not decide alone. x and h are the pruned and healed model's
own: each refit sees what is left of earlier errors.
Inside a layer that loses widths, o_proj and then down_proj are refitted in the same way, each to what the dense layer
has at that place. ReplaceMe (arXiv 2505.02819) fits a map of hidden states and folds it into W: D is then (T - 1) W,
with fewer degrees of freedom.

What a fit gains on the windows it has seen says nothing of other text. Each ridge is the one with which a kind of text
that was left out gains most, and at the end the whole is judged on windows that were held out of every kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slimcore import layerwise
from slimcore.calibration import Tokens, as_ids
from slimcore.errors import PlanError, TextError
from slimcore.plan import Plan
from slimcore.refits import find, set_
from slimcore.structure import check_weights, decoder
from slimcore.surgery import check_fits, cut_
from slimcore.trial import judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD = 8  # one window in so many of each kind is held out, two where there are four, and one at least
FOLDS = 5  # at most; each is a kind of text, or several


@torch.no_grad()
def heal_(
    model: PreTrainedModel,
    plan: Plan,
    tokens: Tokens | Tensor,
    *,
    batch_size: int = 8,
    arithmetic: torch.dtype | None = None,
) -> Plan:
    """Cut the dense `model` in place as `prune_` does, refit what is next to each gap, and return the plan with that.

    `tokens`: calibration windows (N, T), of every kind of text that the model is for (`Tokens.kinds`). Some of each
    kind are held out: where one gets worse, a half of each change is kept, a quarter, or nothing, and the plan says so.
    `batch_size`: windows computed at once. `arithmetic`: what layers are run in (None: the weights' dtype; on a CPU
    float32); sums are in float32, solutions in float64.
    Memory: beside the model, two streams of hidden states (N, T, H), what one matrix of I inputs reads (N, T, I), and
    what fits it, where it lies: (10 I + 12 H) I float32, five folds' sums being half of it. LLaMA-7B, I = 11,008: 7 GB.
    The model is untouched where an error is raised: PlanError where the plan is another model's, takes nothing away, or
    begins with a gap; TextError for too few tokens; UnsupportedModelError where a value is not finite.
    """
    view = decoder(model)
    check_weights(model)
    check_fits(view, plan)
    if not plan.removed and not plan.width:
        raise PlanError(f"{plan.method}: the plan takes nothing away: there is nothing to heal")
    if 0 in plan.removed:
        raise PlanError("the first layer goes, and none is before it to be refitted: protect it, or do not heal")
    given = tokens if isinstance(tokens, Tokens) else Tokens(tokens)
    ids = as_ids(given, view)
    _check_enough(plan, ids)
    split = _split(given)
    dtype = layerwise.arithmetic(view.head.weight, arithmetic)
    was_training = model.training
    model.eval()
    try:
        refits = find(view, plan, [layerwise.batches(ids[rows], batch_size) for rows in split.folds], dtype)
        held = {kind: layerwise.batches(ids[rows], batch_size) for kind, rows in split.held.items()}
        verdict = judge(view, plan, refits, held, dtype)
    finally:
        model.train(was_training)
    cut_(model, plan)
    layers = decoder(model).layers
    for layer in {refit.layer for refit in refits} if verdict.kept else ():
        set_(layers[plan.keep.index(layer)], [refit for refit in refits if refit.layer == layer], verdict.kept)
    record = given.describe() | {
        "held_out": sum(map(len, split.held.values())),
        "ridge": {refit.name: refit.ridge for refit in refits},
        "error_left": {refit.name: round(refit.left, 4) for refit in refits},
        "perplexity": {kind: [value, verdict.after[kind]] for kind, value in verdict.before.items()},
        "kept": verdict.kept,
    }
    return plan.with_healing(record)


@dataclass(frozen=True)
class _Split:
    """Which windows are for what, by their numbers."""

    folds: list[list[int]]  # to fit on; one is a kind of text, or some of them, or a part of the only one
    held: dict[str, list[int]]  # to judge on, of each kind


def _split(tokens: Tokens) -> _Split:
    """Hold out some windows of each kind, and deal the others out in folds; TextError where there are too few."""
    kinds: dict[str, list[int]] = {}
    for number, kind in enumerate(tokens.kinds or (tokens.text,) * len(tokens.ids)):
        kinds.setdefault(kind, []).append(number)
    fit: list[list[int]] = []
    held: dict[str, list[int]] = {}
    least = 3 if len(kinds) == 1 else 2  # one to judge on, and two folds
    for kind, numbers in kinds.items():
        if len(numbers) < least:
            raise TextError(
                f"healing needs at least {least} windows of each kind of text, some of which no fit sees:"
                f" got {len(numbers)} of {kind}; ask for more windows, or give fewer texts"
            )
        few = max(len(numbers) // HELD, min(2, len(numbers) // 2))
        fit.append(numbers[: len(numbers) - few])
        held[kind] = numbers[len(numbers) - few :]
    if len(fit) == 1:
        size = -(-len(fit[0]) // FOLDS)
        return _Split([fit[0][at : at + size] for at in range(0, len(fit[0]), size)], held)
    return _Split([list(chain(*fit[first::FOLDS])) for first in range(min(FOLDS, len(fit)))], held)


def _check_enough(plan: Plan, ids: Tensor) -> None:
    """Raise TextError where a matrix has more inputs than there are tokens to fit it on."""
    inputs = max(max(shape.channels, shape.heads * shape.head_dim) for shape in plan.after())
    windows, length = ids.shape
    if windows * length < inputs:
        raise TextError(
            f"healing fits matrices of {inputs:,} inputs, and needs as many tokens: got {windows} windows of {length},"
            f" ask for at least {-(-inputs // length)}"
        )
