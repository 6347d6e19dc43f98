"""How a cell is generated: one file an engine.

An engine is a function (model, ids (M, T), new tokens N, sample=False) -> ids (M, T + N): greedy, or, where `sample` is
asked, drawn from the 50 most likely tokens within a probability of 0.95.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from slimcore.bench.measure.engines.compiled import compiled
from slimcore.bench.measure.engines.eager import eager
from slimcore.bench.measure.engines.vllm import lacking, vllm
from slimcore.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    class Engine(Protocol):
        """Generates."""

        def __call__(self, model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False) -> Tensor:
            """Ids (M, T + N)."""


ENGINES: dict[str, Engine] = {"eager": eager, "compiled": compiled, "vllm": vllm}


def engine_named(name: str) -> Engine:
    """The engine called `name`. Raises UnknownNameError."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return ENGINES[name]


def missing(name: str, device: str) -> str:
    """Why the engine cannot run here; empty where it can."""
    return lacking(device) if name == "vllm" else ""
