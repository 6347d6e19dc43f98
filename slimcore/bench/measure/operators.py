"""How many operators one decoded token calls: a cost of launching that needs no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from slimcore.bench.measure.engines.eager import generated

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Counter(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    calls = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operator_calls(model: PreTrainedModel) -> int:
    """Operators that one more token of one row costs in transformers' `generate`."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)

    def calls(new_tokens: int) -> int:
        counter = _Counter()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), counter:
            generated(model, ids, new_tokens)
        return counter.calls

    return calls(3) - calls(2)


def counted_by() -> str:
    """The versions that the number of operators depends on."""
    return f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}"
