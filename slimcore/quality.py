"""Perplexity, and the conditions it was taken under."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimcore import layerwise
from slimcore.calibration import Tokens, as_ids
from slimcore.errors import SameTextWarning
from slimcore.plan import Plan
from slimcore.progress import progress
from slimcore.structure import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Perplexity:
    """A perplexity that can be compared: only with one on the same tokens."""

    value: float  # infinite where it is beyond any float
    predictions: int  # tokens predicted: N (T - 1)
    tokens: dict[str, Any]  # provenance of the windows: text, BOS policy, hashes

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokens: Tokens | Tensor,
    *,
    plan: Plan | None = None,
    batch_size: int = 16,
    arithmetic: torch.dtype | None = None,
) -> Perplexity:
    """exp of the mean next-token NLL, pooled over all windows (N, T); each window stands alone.

    `plan`: the model's own, to warn where it was found, healed or recovered on the text of `tokens`.
    `batch_size`: windows computed at once. `arithmetic`: what the model is run in, float16, bfloat16 or float32 (None:
    its weights' dtype; on a CPU float32). Raises TextError where ids do not fit the vocabulary, and
    UnsupportedModelError where the model computes what is not finite: it has no perplexity.
    """
    view = decoder(model)
    ids = as_ids(tokens, view)
    if plan is not None and isinstance(tokens, Tokens) and tokens.text_hashes & plan.texts:
        warnings.warn(flattered(tokens.text), SameTextWarning, stacklevel=2)
    dtype = layerwise.arithmetic(view.head.weight, arithmetic)
    was_training = model.training
    model.eval()
    nll = 0.0
    try:
        for batch in progress(layerwise.batches(ids, batch_size), "perplexity"):
            entry = layerwise.enter(view, batch, dtype)
            hidden = entry.hidden
            for layer, arguments in zip(view.layers, entry.arguments, strict=True):
                with layerwise.computing_in(layer, dtype):
                    hidden = layerwise.run(layer, hidden, arguments)
            nll += float(layerwise.next_token_nll(view, hidden, batch).double().sum())
            if not math.isfinite(nll):
                raise layerwise.not_finite(view, batch, dtype)
    finally:
        model.train(was_training)
    predictions = ids.shape[0] * (ids.shape[1] - 1)
    described = (tokens if isinstance(tokens, Tokens) else Tokens(ids)).describe()
    try:
        value = math.exp(nll / predictions)
    except OverflowError:
        value = math.inf
    return Perplexity(value, predictions, described)


def flattered(text: str) -> str:
    """The warning where `text` is calibrated and measured on."""
    return f"{text} is what the model was calibrated on: its perplexity flatters; measure on another text"
