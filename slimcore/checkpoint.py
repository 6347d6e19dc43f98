"""save and load a folder of config.json and safetensors: whole, ordinary, and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.errors import CheckpointError
from slimcore.files import new_folder
from slimcore.plan import Plan
from slimcore.structure import check_family

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PLAN_FILE = "slimcore_plan.json"


def save(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    plan: Plan | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `model` to `folder` as an ordinary transformers checkpoint, whole or not at all; return the folder.

    `plan` and `tokenizer` go along. Raises CheckpointError where the folder has content and `overwrite` is False,
    or cannot be written.
    """
    folder = Path(folder)
    check_writable(folder, overwrite=overwrite)
    _forget_source_format(model)
    try:
        with new_folder(folder) as beside, quiet_transformers():
            model.save_pretrained(beside)
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            if plan is not None:
                plan.save(beside / PLAN_FILE)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}") from error
    return folder


def check_writable(folder: Path, *, overwrite: bool) -> None:
    """Raise CheckpointError where `save` would refuse: before the work, not after it."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: give a folder to write the checkpoint to")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(f"{folder} is not empty: choose another folder, or overwrite it on purpose")


def load_folder(
    folder: Path, *, dtype: torch.dtype | None, device: str | torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a checkpoint folder; every weight comes from the file or nothing is returned.

    `device`: `auto` spreads it over the GPUs. The tokenizer is None where the folder has none. Raises CheckpointError,
    UnsupportedModelError.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read_config(folder)
    _check_weights(folder)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                device_map=device if device == "auto" else None,
                local_files_only=True,
                output_loading_info=True,
            )
            model, info = loaded
    except Exception as error:  # transformers raises whatever a bad file makes it raise
        raise CheckpointError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    wrong = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{folder} lacks {len(wrong)} of the weights its config.json asks for ({wrong[0]}, ...):"
            " the folder is incomplete, or its config is not the one it was saved with"
        )
    # Buffers of older transformers may be left over; weights and biases may not.
    left = sorted(k for k in info["unexpected_keys"] if k.endswith((".weight", ".bias")))
    if left:
        raise CheckpointError(
            f"{folder} holds {len(left)} weights that its config.json has no place for ({left[0]}, ...):"
            " its config is not the one it was saved with, or not of its model class"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if _has_tokenizer(folder) else None
    return (model if device == "auto" else model.to(device)).eval(), tokenizer


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a checkpoint folder. Raises CheckpointError, UnsupportedModelError."""
    from transformers import AutoConfig

    from slimcore.registration import register

    register()
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model: it has no config.json")
    _json(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever a bad file makes it raise
        raise CheckpointError(f"{path} cannot be used: {str(error).strip().splitlines()[0]}") from error
    check_family(config)
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers shows its own progress bars on a terminal only, and leaves reports on loading to the caller."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _check_weights(folder: Path) -> None:
    """Raise CheckpointError unless every weight file is there, to its last byte."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    names = sorted(set(_json(index).get("weight_map", {}).values())) if index.is_file() else ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is incomplete: it has no {name}")
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} is damaged or half written: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def _forget_source_format(model: PreTrainedModel) -> None:
    """A model read from GGUF holds plain weights, but transformers refuses to save it under its old format's name."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None:
        return
    entry = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = entry.get("quant_method")
    if getattr(method, "value", method) != "gguf":
        raise CheckpointError(f"the model is quantized ({method}): prune and save the unquantized model")
    del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False)):
        setattr(model, name, value)
