"""transformers' `generate` with a static cache and its own compiled decode step: no launch from Python.

The first generate of a shape compiles: it is the first of a cell's warm-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slimcore.bench.engines.eager import eager

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def compiled(model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False) -> Tensor:
    """As `eager`, each decode step one compiled graph: on CUDA a CUDA graph, on a CPU with its weights packed."""
    from transformers import CompileConfig

    _forget(model, (ids.shape[0], ids.shape[1] + new_tokens))
    on_cpu: dict[str, Any] = {"mode": None, "options": {"freezing": True}}
    config = CompileConfig(dynamic=False, **(on_cpu if model.device.type == "cpu" else {"mode": "reduce-overhead"}))
    config._compile_all_devices = True  # type: ignore[assignment] # CPU too
    return eager(model, ids, new_tokens, sample=sample, cache_implementation="static", compile_config=config)


def _forget(model: PreTrainedModel, shape: tuple[int, int]) -> None:
    """Drop what was compiled for another shape: graphs hold memory, and torch compiles a function so often only."""
    if shape[1] and model.__dict__.get("_slimcore_compiled") != shape and _decodes(model, shape):
        import torch

        torch.compiler.reset()
        model.__dict__.pop("_compiled_call", None)
        model.__dict__["_slimcore_compiled"] = shape


def _decodes(model: PreTrainedModel, shape: tuple[int, int]) -> bool:
    """Whether `shape` is not the one-token generate (TTFT) of the shape that is compiled: that runs no decode step."""
    known = model.__dict__.get("_slimcore_compiled")
    return known is None or known[0] != shape[0] or shape[1] > known[1]
