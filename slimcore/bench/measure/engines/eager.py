"""transformers' `generate` as it comes: a cache that grows, every operator launched by Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def eager(model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False, **options: Any) -> Tensor:
    """One beam, exactly `new_tokens` a row; `options` are further ones of `generate`."""
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    drawn = {"do_sample": True, "top_k": 50, "top_p": 0.95} if sample else {"do_sample": False}
    return generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        num_beams=1,
        pad_token_id=0,
        **drawn,
        **options,
    )
