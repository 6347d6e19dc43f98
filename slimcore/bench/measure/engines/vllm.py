"""vLLM, where it is installed, for the models it can load: stock classes, from a folder of their own."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def lacking(device: str) -> str:
    """Why it cannot run here; empty where it can."""
    if find_spec("vllm") is None:
        return "vllm is not installed: pip install vllm"
    return "" if device == "cuda" else "vllm is measured on CUDA devices only"


def vllm(model: PreTrainedModel, ids: Tensor, new_tokens: int, *, sample: bool = False) -> Tensor:
    """Ids (M, T + N) by vLLM, started once a model; the model's own weights give way to vLLM's copy."""
    from vllm import SamplingParams

    chosen = {"temperature": 1.0, "top_k": 50, "top_p": 0.95} if sample else {"temperature": 0.0}
    limits = SamplingParams(min_tokens=new_tokens, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **chosen)
    prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
    answers = _started(model).generate(prompts, limits, use_tqdm=False)
    new = [answer.outputs[0].token_ids for answer in answers]
    return ids.new_tensor([[*row, *more] for row, more in zip(ids.tolist(), new, strict=True)])


def _started(model: PreTrainedModel) -> Any:
    engine = model.__dict__.get("_slimcore_vllm")
    if engine is None:
        from vllm import LLM

        with tempfile.TemporaryDirectory(prefix="slimcore-") as folder:
            model.save_pretrained(folder)
            model.to("cpu")  # type: ignore[arg-type] # both do not fit beside each other; the ids' device stays the cell's
            engine = LLM(folder, skip_tokenizer_init=True, dtype=str(model.dtype).removeprefix("torch."),
                         max_model_len=model.config.max_position_embeddings)  # fmt: skip
        model.__dict__["_slimcore_vllm"] = engine
    return engine
