"""How a cell is generated: one file an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from slimcore.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Mark = Callable[[], object]
NAMES = ("eager", "compiled", "vllm")


class Engine(Protocol):
    """Generates from one model, as it is when the engine is made."""

    elsewhere: bool  # in processes of its own: tokens are timed by the host's clock as they arrive, memory is not known

    def generate(self, ids: Tensor, new_tokens: int, *, sample: bool, mark: Mark) -> Tensor:
        """Ids (M, T), new tokens N -> ids (M, T + N); `mark` is called for each token that all rows have.

        Greedy, or, where `sample` is asked, drawn from the 50 most likely tokens within a probability of 0.95.
        """

    def close(self) -> None:
        """Give back all that it holds."""


def check_name(name: str) -> None:
    """Raise UnknownNameError unless `name` is an engine."""
    if name not in NAMES:
        raise UnknownNameError("engine", name, NAMES)


def start(name: str, model: PreTrainedModel, options: Mapping[str, Any]) -> Engine:
    """The engine called `name` on `model`. Raises UnknownNameError."""
    check_name(name)
    if name == "vllm":
        from slimcore.bench.measure.engines.vllm import Vllm

        return Vllm(model, options)
    if name == "compiled":
        from slimcore.bench.measure.engines.compiled import Compiled

        return Compiled(model)
    from slimcore.bench.measure.engines.eager import Eager

    return Eager(model)


def missing(name: str, device: str) -> str:
    """Why the engine cannot run in this process; empty where it can."""
    from slimcore.bench.measure.engines import vllm

    return vllm.missing(device) if name == "vllm" else ""
