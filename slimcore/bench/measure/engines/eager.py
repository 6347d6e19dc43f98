"""transformers' `generate` as it comes: a cache that grows, every operator launched by Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slimcore.bench.measure.engines import Mark


class Eager:
    """Generates as transformers does."""

    elsewhere = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def generate(self, ids: Tensor, new_tokens: int, *, sample: bool, mark: Mark) -> Tensor:
        """Ids (M, T + N)."""
        return generated(self._model, ids, new_tokens, sample=sample, mark=mark)

    def close(self) -> None:
        """Nothing is held."""


def generated(
    model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False, mark: Mark | None = None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """One beam, exactly `new_tokens` a row, `mark` called after each; `options` are further ones of `generate`."""
    from transformers import StoppingCriteriaList

    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    drawn = {"do_sample": True, "top_k": 50, "top_p": 0.95} if sample else {"do_sample": False}
    if mark is not None:
        options["stopping_criteria"] = StoppingCriteriaList([_marking(ids, mark)])
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


def _marking(ids: Tensor, mark: Mark) -> Any:
    """A criterion that never stops: transformers asks it after each token."""
    import torch
    from transformers import StoppingCriteria

    never = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    class Marking(StoppingCriteria):
        """Marks, and goes on."""

        def __call__(self, *_: Any, **__: Any) -> Any:
            mark()
            return never

    return Marking()
