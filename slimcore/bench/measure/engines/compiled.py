"""transformers' `generate` with a static cache and its own compiled decode step: no launch from Python.

The first generate of a shape compiles: it is the first of a cell's warm-ups.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from slimcore.bench.measure.engines.eager import generated

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, StaticCache

    from slimcore.bench.measure.engines import Mark


class Compiled:
    """As eager, each decode step one compiled graph: on CUDA a CUDA graph, on a CPU with kernels for its rows."""

    elsewhere = False

    def __init__(self, model: PreTrainedModel) -> None:
        import torch

        self._model = model
        self._cache: StaticCache | None = None
        self._shape = (0, 0)
        # What was compiled for another shape holds memory, and torch compiles a function so often only.
        torch.compiler.reset()
        model.__dict__.pop("_compiled_call", None)

    def generate(self, ids: Tensor, new_tokens: int, *, sample: bool, mark: Mark) -> Tensor:
        """Ids (M, T + N). Raises ValueError where M or T + N are not those of the first call."""
        from torch._inductor import config as inductor
        from torch.compiler import skip_guard_on_all_nn_modules_unsafe
        from transformers import CompileConfig

        on_cpu = self._model.device.type == "cpu"
        # The model does not change while the engine lives: asking in each step takes as long as launching the graph.
        how = {"guard_filter_fn": skip_guard_on_all_nn_modules_unsafe, "triton.cudagraphs": not on_cpu}
        config = CompileConfig(dynamic=False, mode=None, options=how)  # type: ignore[arg-type] # None: as options say
        config._compile_all_devices = True  # type: ignore[assignment] # CPU too
        cache = self._empty_cache(ids.shape[0], ids.shape[1] + new_tokens)
        # Not options of the compilation, which come too late for both: weights must be constants when it is traced
        # already, or nothing is packed; and the pass reads its limits once, when it is imported.
        with inductor.patch(_for_rows(ids.shape[0]) if on_cpu else {}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`past_key_values` is deprecated")  # its new name is not in all versions
            return generated(self._model, ids, new_tokens, sample=sample, mark=mark,
                             past_key_values=cache, compile_config=config)  # fmt: skip

    def close(self) -> None:
        """Forget what was compiled, and the cache."""
        import torch

        self._cache = None
        self._model.__dict__.pop("_compiled_call", None)
        torch.compiler.reset()

    def _empty_cache(self, rows: int, length: int) -> StaticCache:
        """One object for all runs, whose address is compiled in."""
        from transformers import StaticCache

        if self._cache is None:
            self._cache, self._shape = StaticCache(self._model.config, max_cache_len=length), (rows, length)
        if self._shape != (rows, length):
            raise ValueError(f"compiled for {self._shape} (rows, tokens), asked for {(rows, length)}: start another")
        self._cache.reset()
        return self._cache


def _for_rows(rows: int) -> dict[str, Any]:
    """What makes matrix products fast on a CPU: one row as a reduction, which reads weights twice as fast, or packed.

    Packing would win over the reduction where both are allowed.
    """
    reduction = {"cpu_max_other_dimension_decomposition": 1 << 20}  # wider than any vocabulary
    return {"freezing": rows > 1, "post_grad_fusion_options": {"decompose_mm_pass": reduction}}
