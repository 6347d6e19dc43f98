"""transformers' `generate` with a static cache and its own compiled decode step: no launch from Python.

The first generate of a shape compiles: it is the first of a cell's warm-ups.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from slimcore.bench.measure.engines.eager import eager

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, StaticCache


def compiled(model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False) -> Tensor:
    """As `eager`, each decode step one compiled graph: on CUDA a CUDA graph, on a CPU with kernels for its rows."""
    from torch._inductor import config as inductor
    from torch.compiler import skip_guard_on_all_nn_modules_unsafe
    from transformers import CompileConfig

    on_cpu = model.device.type == "cpu"
    # Whether the model still is what was compiled is asked once a generate, by _cache, and not in each step, where it
    # takes as long as launching the graph does.
    how = {"guard_filter_fn": skip_guard_on_all_nn_modules_unsafe, "triton.cudagraphs": not on_cpu}
    config = CompileConfig(dynamic=False, mode=None, options=how)  # type: ignore[arg-type] # None: as options say
    config._compile_all_devices = True  # type: ignore[assignment] # CPU too
    cache = _cache(model, ids.shape[0], ids.shape[1] + new_tokens, decodes=new_tokens > 1)
    try:
        # Not options of the compilation, which come too late for both: weights must be constants when it is traced
        # already, or nothing is packed; and the pass reads its limits once, when it is imported.
        with inductor.patch(_for_rows(ids.shape[0]) if on_cpu else {}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`past_key_values` is deprecated")  # its new name is not in all versions
            return eager(model, ids, new_tokens, sample=sample, past_key_values=cache, compile_config=config)
    except BaseException:
        _forget(model)  # it holds memory
        raise


def _for_rows(rows: int) -> dict[str, Any]:
    """What makes matrix products fast on a CPU: one row as a reduction, which reads weights twice as fast, or packed.

    Packing would win over the reduction where both are allowed.
    """
    reduction = {"cpu_max_other_dimension_decomposition": 1 << 20}  # wider than any vocabulary
    return {"freezing": rows > 1, "post_grad_fusion_options": {"decompose_mm_pass": reduction}}


def _cache(model: PreTrainedModel, rows: int, length: int, *, decodes: bool) -> StaticCache | None:
    """An empty cache for `rows` of `length` tokens: one object for all runs of a shape, whose address is compiled in.

    None where the one-token generate (TTFT), which runs no decode step, has no shape's cache to use.
    """
    import torch
    from transformers import StaticCache

    shape = {"rows": rows, "length": length, "model": _identity(model)}
    had = model.__dict__.get("_slimcore_compiled", {})
    if decodes and had.get("shape") != shape:
        # What was compiled for another shape holds memory, and torch compiles a function so often only.
        had.clear()
        _forget(model)
        torch.compiler.reset()
        had |= {"shape": shape, "cache": StaticCache(model.config, max_cache_len=length)}
        model.__dict__["_slimcore_compiled"] = had
    elif not decodes and had.get("shape", {}) | {"length": length} != shape:
        return None
    cache: StaticCache = had["cache"]
    cache.reset()
    return cache


def _identity(model: PreTrainedModel) -> list[tuple[object, ...]]:
    """What changes where a module does, or a weight, replaced or written to: it may have been cut or healed since."""
    modules: list[tuple[object, ...]] = [(id(module), module.training) for module in model.modules()]
    return modules + [(id(p), p.shape, p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]


def _forget(model: PreTrainedModel) -> None:
    for name in ("_compiled_call", "_slimcore_compiled"):
        model.__dict__.pop(name, None)
