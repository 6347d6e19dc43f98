"""Running a decoder one layer at a time: what scoring needs and `model(...)` cannot give.

Shapes: N windows, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from slimcore.structure import Decoder

# Logits of so many vocabulary entries at a time stay in a CPU's cache.
VOCABULARY_BLOCK = 2048


@dataclass(frozen=True)
class Entry:
    """What enters the first layer, and what each layer is called with beside its hidden states."""

    hidden: Tensor  # (N, T, H)
    arguments: list[dict[str, Any]]  # one a layer: mask, positions, rotary embeddings


class _Recorder(nn.Module):
    """Stands in a layer's place and notes how it is called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


def enter(view: Decoder, ids: Tensor, dtype: torch.dtype) -> Entry:
    """Embed `ids` (N, T) and learn from the model itself how it calls its layers; no layer is computed.

    `dtype`: arithmetic to run in. The mask and the rotary embeddings are the model's own, whatever its version.
    """
    ids = ids.to(view.embedding.weight.device)
    hidden = view.embedding(ids).to(dtype)
    recorders = nn.ModuleList(_Recorder(layer) for layer in view.layers)
    view.backbone.layers = recorders
    try:
        view.backbone(inputs_embeds=hidden, use_cache=False)
    finally:
        view.backbone.layers = view.layers
    return Entry(hidden, [cast(_Recorder, r).arguments for r in recorders])


def run(layer: nn.Module, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
    """One layer's output (N, T, H)."""
    output = layer(hidden, **arguments)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def arithmetic(weight: Tensor) -> torch.dtype:
    """The dtype to compute in: the weights' own; on a CPU float32, so that results do not depend on its kind."""
    return weight.dtype if weight.device.type != "cpu" else torch.float32


@contextmanager
def computing_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold `module`'s weights in `dtype` inside the block; a wider dtype and back loses nothing."""
    stored = {p: p.data for p in module.parameters() if p.dtype != dtype}
    try:
        for parameter, data in stored.items():
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in stored.items():
            parameter.data = data


def next_token_nll(view: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each next token, (N, T-1) float32, from the last layer's output (N, T, H).

    The head is applied to one block of the vocabulary at a time with a running log-sum-exp, so that no
    (N, T, V) logits exist.
    """
    weight = view.head.weight.detach()
    with computing_in(view.norm, hidden.dtype):
        states = view.norm(hidden[:, :-1]).flatten(0, 1).to(weight.device)  # (R, H), R = N (T-1)
    chosen = (states.float() * weight[_targets(ids, weight)].float()).sum(-1)
    nll: Tensor = (_log_normaliser(states, weight) - chosen).view(ids.shape[0], -1)
    return nll


def summed_nll_gradient(view: Decoder, hidden: Tensor, ids: Tensor) -> Tensor:
    """Gradient (N, T, H) of the summed next-token NLL with respect to the last layer's output (N, T, H).

    d NLL / d state = sum over the vocabulary of probability x head row, minus the target's row: in blocks, as above,
    and in one pass over them, what is summed being scaled down whenever a larger logit turns up.
    """
    weight = view.head.weight.detach()
    with torch.enable_grad(), computing_in(view.norm, hidden.dtype):
        hidden = hidden.detach().requires_grad_()
        normed = view.norm(hidden[:, :-1])  # (N, T-1, H)
        states = normed.detach().flatten(0, 1).to(weight.device)  # (R, H)
        top = torch.full((len(states), 1), -torch.inf, dtype=states.dtype, device=states.device)
        total, rows_sum = torch.zeros_like(top), torch.zeros_like(states)
        for block in weight.split(VOCABULARY_BLOCK):
            rows = block.to(states.dtype)
            logits = states @ rows.T
            higher = torch.maximum(top, logits.amax(-1, keepdim=True))
            shrink, top = (top - higher).exp_(), higher
            exponentials = logits.sub_(top).exp_()
            total.mul_(shrink).add_(exponentials.sum(-1, keepdim=True))
            rows_sum.mul_(shrink).addmm_(exponentials, rows)
        gradient = rows_sum.div_(total).sub_(weight[_targets(ids, weight)])
        return torch.autograd.grad(normed, hidden, grad_outputs=gradient.to(normed.device).view_as(normed))[0]


def _targets(ids: Tensor, weight: Tensor) -> Tensor:
    """The token each position but the last is to predict, (R,)."""
    return ids[:, 1:].to(weight.device).flatten()


def _log_normaliser(states: Tensor, weight: Tensor) -> Tensor:
    """log sum exp of the logits of each state, (R,) float32."""
    total = torch.full((len(states),), -torch.inf, device=states.device)
    for block in weight.split(VOCABULARY_BLOCK):
        logits = (states @ block.to(states.dtype).T).float()
        top = logits.amax(-1, keepdim=True)
        total = torch.logaddexp(total, logits.sub_(top).exp_().sum(-1).log_().add_(top[:, 0]))
    return total


def batches(ids: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split windows (N, T) into batches of at most `size`."""
    parts: tuple[Tensor, ...] = ids.split(max(1, size))
    return parts
