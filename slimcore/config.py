"""The config of a checkpoint folder: read, and refused where slimcore cannot prune what it describes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.errors import CheckpointError, told_as
from slimcore.quiet import quiet_transformers
from slimcore.replacing import CONFIG_FILE
from slimcore.structure import check_family

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Quantized weights of this kind are read by transformers as what they stand for.
FP8 = "fp8"
_GGUF = "gguf"
_LFS_POINTER = b"version https://git-lfs"


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a checkpoint folder. Raises CheckpointError, UnsupportedModelError."""
    from transformers import AutoConfig, PretrainedConfig

    from slimcore.registration import register

    register()
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model: it has no {CONFIG_FILE}")
    stored = read_json(path)
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter (adapter_config.json), not a whole model: merge it first")
    if "transformers_weights" in stored:
        raise CheckpointError(
            f"{path} names other files for the weights (transformers_weights): load and save the model with"
            " transformers first"
        )
    with told_as(CheckpointError, f"{path} cannot be used"), quiet_transformers():
        if "model_type" in stored:  # before code of the checkpoint's own is asked for
            check_family(PretrainedConfig.from_dict({"model_type": stored["model_type"]}))
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_family(config)
    _check_quantization(config, path)
    return config


def quantized_by(config: PretrainedConfig) -> str | None:
    """The method that a config says its weights are quantized by."""
    entry = getattr(config, "quantization_config", None)
    if entry is None:
        return None
    method = (entry if isinstance(entry, dict) else entry.to_dict()).get("quant_method")
    return str(getattr(method, "value", method) or "its method has no name")


def on_meta(config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of `config` on the meta device, unquantized; `config` stays as it is. `dtype`: None is the config's."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = deepcopy(config)
    plain.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(plain, dtype=dtype or config.dtype)
    model.eval()
    return model


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    check_fetched(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


def is_pointer(path: Path) -> bool:
    """Whether a file is Git LFS's note of where the file is."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def check_fetched(path: Path) -> None:
    """Raise CheckpointError where a file is a pointer of Git LFS, or cannot be read."""
    with told_as(CheckpointError, f"cannot read {path}"):
        if is_pointer(path):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: git lfs pull fetches it")


def _check_quantization(config: PretrainedConfig, path: Path) -> None:
    """Make `config` ask for plain weights, or raise CheckpointError where they are quantized in another way."""
    method = quantized_by(config)
    if method == _GGUF:  # left by a conversion to plain weights
        del config.quantization_config
    elif method == FP8:
        config.quantization_config = {**config.quantization_config, "dequantize": True}  # on a GPU too
    elif method is not None:
        raise CheckpointError(f"{path}: the model is quantized ({method}): prune the unquantized model")
