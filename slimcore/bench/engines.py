"""How a cell is generated. An engine is a function (model, ids (M, T), new tokens N) -> ids (M, T + N)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from slimcore.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    Engine = Callable[[PreTrainedModel, Tensor, int], Tensor]


def eager(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Tensor:
    """transformers' `generate`: greedy, one beam, a dynamic cache, exactly `new_tokens` a row."""
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    return generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
    )


ENGINES: dict[str, Engine] = {"eager": eager}


def engine_named(name: str) -> Engine:
    """The engine called `name`. Raises UnknownNameError."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return ENGINES[name]
