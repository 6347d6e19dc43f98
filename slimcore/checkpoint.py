"""save and load a folder of config.json and weights: whole, ordinary, and checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.config import on_meta, quantized_by, read_config
from slimcore.errors import CheckpointError, told_as
from slimcore.files import new_folder
from slimcore.fitting import check_finite, check_fits, is_old_buffer, settle_tie_
from slimcore.plan import Plan
from slimcore.quiet import quiet_transformers
from slimcore.replacing import TERMS, check_room, check_writable
from slimcore.tokenizer import load_tokenizer
from slimcore.weights import has_weights, stored_dtype, stored_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

    `plan` and `tokenizer` go along, and so do the licence files of the folder that the model came from. `overwrite`
    replaces a checkpoint, and no other folder. Raises CheckpointError where the folder has content that may not be
    replaced, or cannot be written.
    """
    folder = Path(folder)
    check_writable(folder, overwrite=overwrite)
    check_room(folder, sum(p.numel() * p.element_size() for p in model.parameters()))
    _forget_source_format(model)
    with told_as(CheckpointError, f"cannot write {folder}"), new_folder(folder) as beside, quiet_transformers():
        model.save_pretrained(beside, save_original_format=False)  # fp8 that was read is fp8 no more
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        if plan is not None:
            plan.save(beside / PLAN_FILE)
        _carry_terms(model, beside)
    return folder


def load_folder(
    folder: Path, *, dtype: torch.dtype | None, device: str | torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a checkpoint folder: every weight comes from its files, is finite and has its place, or nothing is loaded.

    `dtype`: None is the one that the files have. `device`: `auto` spreads the model over the GPUs. The tokenizer is
    None where the folder has none. Raises CheckpointError, UnsupportedModelError.
    """
    from transformers import AutoModelForCausalLM

    config, stored = read_config(folder), stored_weights(folder)
    settle_tie_(config, stored)
    check_fits(on_meta(config), stored, folder, config)
    tokenizer = load_tokenizer(folder)
    with told_as(CheckpointError, f"{folder} cannot be loaded"), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or stored_dtype(stored),
            device_map=device if device == "auto" else None,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
    model, info = loaded
    # What was checked before is what was loaded.
    unread = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]]
    unread += [key for key in info["unexpected_keys"] if not is_old_buffer(key)]
    if unread:
        raise CheckpointError(f"{folder}: transformers loaded other weights than are there ({min(unread)}, ...)")
    check_finite(model, folder)
    return (model if device == "auto" else model.to(device)).eval(), tokenizer


def load_folder_meta(folder: Path, *, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model in a checkpoint folder on the meta device; weights that are there are checked as `load_folder` does.

    `dtype`: None is the one that the files have, or else the config. Raises CheckpointError, UnsupportedModelError.
    """
    config = read_config(folder)
    if not has_weights(folder):
        return on_meta(config, dtype)
    stored = stored_weights(folder)
    settle_tie_(config, stored)
    model = on_meta(config, dtype or stored_dtype(stored))
    check_fits(model, stored, folder, config)
    return model


def _carry_terms(model: PreTrainedModel, folder: Path) -> None:
    """Copy the licence files of the folder that `model` came from, where it came from one."""
    if model.name_or_path:
        for file in (file for pattern in TERMS for file in Path(model.name_or_path).glob(pattern) if file.is_file()):
            shutil.copyfile(file, folder / file.name)


def _forget_source_format(model: PreTrainedModel) -> None:
    """A model read from GGUF holds plain weights, but transformers refuses to save it under its old format's name."""
    method = quantized_by(model.config)
    if method is None:
        return
    if method != "gguf":
        raise CheckpointError(f"the model is quantized ({method}): prune and save the unquantized model")
    del model.config.quantization_config
    for name, value in (("hf_quantizer", None), ("is_quantized", False)):
        setattr(model, name, value)
