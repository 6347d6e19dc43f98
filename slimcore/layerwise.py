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

from slimcore.errors import UnknownNameError, UnsupportedModelError
from slimcore.structure import Decoder

ARITHMETICS = (torch.float16, torch.bfloat16, torch.float32)

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


def arithmetic(weight: Tensor, asked: torch.dtype | None = None) -> torch.dtype:
    """The dtype to compute in: what is `asked`, or the weights' own; on a CPU float32, whatever it computes natively.

    Raises UnknownNameError where `asked` is not one of ARITHMETICS.
    """
    if asked is None:
        return weight.dtype if weight.device.type != "cpu" else torch.float32
    if asked not in ARITHMETICS:
        raise UnknownNameError("arithmetic", str(asked), map(str, ARITHMETICS))
    return asked


@contextmanager
def computing_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold `module`'s weights in `dtype` inside the block; they are as before after it, whatever the dtype."""
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
    rows = weight[_targets(ids, weight)].to(states.dtype)
    chosen = (states.float() * rows.float()).sum(-1)
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
        logits = _logits(states, block.to(states.dtype))
        top = logits.amax(-1, keepdim=True)
        total = torch.logaddexp(total, logits.sub_(top).exp_().sum(-1).log_().add_(top[:, 0]))
    return total


def _logits(states: Tensor, rows: Tensor) -> Tensor:
    """Products of each state (R, H) and row (B, H) of the head, (R, B) float32.

    In half precision a logit of 1,000 would be off by 0.5, and one beyond 65,504 infinite.
    """
    if states.is_cuda and torch.version.cuda and states.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(states, rows.T, out_dtype=torch.float32)  # without float32 copies, as fast as in half precision
    return states.float() @ rows.float().T


@torch.no_grad()
def not_finite(view: Decoder, ids: Tensor, dtype: torch.dtype, without: int | None = None) -> UnsupportedModelError:
    """What to raise where a result from `ids` (N, T), without one layer, is not finite: it names the part at fault.

    The model is run anew to find it: walks check their results alone, since each check makes a device wait.
    """
    name = str(dtype).removeprefix("torch.")
    place, part = _first_not_finite(view, ids, dtype, None)
    if part is view.head and without is not None:
        place, part = _first_not_finite(view, ids, dtype, without)
    damaged = [n for n, p in part.named_parameters() if not bool(p.isfinite().all())]
    if damaged:
        return UnsupportedModelError(
            f"{place}'s {damaged[0]} holds values that are not finite: the weights are damaged, get them anew"
        )
    if dtype == torch.float16:
        return UnsupportedModelError(
            f"{place} computes values beyond 65,504, the largest of float16: load the model in bfloat16 or float32"
        )
    return UnsupportedModelError(
        f"{place} computes values that are not finite in {name}: its weights are out of scale, get them anew"
    )


def _first_not_finite(view: Decoder, ids: Tensor, dtype: torch.dtype, without: int | None) -> tuple[str, nn.Module]:
    """The first part whose output is not finite, by name; the head where all before it are."""
    entry = enter(view, ids, dtype)
    hidden, shorter = entry.hidden, "" if without is None else f"without layer {without}, "
    if not bool(hidden.isfinite().all()):
        return "the embedding", view.embedding
    for index, (layer, arguments) in enumerate(zip(view.layers, entry.arguments, strict=True)):
        if index != without:
            with computing_in(layer, dtype):
                hidden = run(layer, hidden, arguments)
            if not bool(hidden.isfinite().all()):
                return f"{shorter}layer {index}", layer
    with computing_in(view.norm, dtype):
        normed = view.norm(hidden)
    return ("the head", view.head) if bool(normed.isfinite().all()) else (f"{shorter}the final norm", view.norm)


def batches(ids: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split windows (N, T) into batches of at most `size`."""
    parts: tuple[Tensor, ...] = ids.split(max(1, size))
    return parts
