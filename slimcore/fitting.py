"""Whether stored weights are those that a model needs: each with a place, each place with a weight, none quantized."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from slimcore.config import FP8, quantized_by
from slimcore.errors import CheckpointError
from slimcore.weights import Stored, StoredTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PREFIX = "model."
# What old checkpoints store and models compute.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.bias|masked_bias)$")
# Beside quantized weights; activations of the weights they stand for are not scaled.
_FP8_TYPES = ("F8_E4M3", "float8_e4m3fn")
_SCALE, _ACTIVATION_SCALE = "_scale_inv", ".activation_scale"
_ROWS = 4096


def is_old_buffer(name: str) -> bool:
    """Whether a tensor of this name is none of the weights."""
    return _BUFFERS.search(name) is not None


def settle_tie_(config: PretrainedConfig, stored: Stored) -> None:
    """Make `config` say whether the head is the embedding: it is its own where the files hold another one."""
    head, embedding = stored.get(HEAD), stored.get(EMBEDDING)
    if config.tie_word_embeddings and head and embedding and not _equal(head, embedding):
        config.tie_word_embeddings = False


def check_fits(model: PreTrainedModel, stored: Stored, folder: Path, config: PretrainedConfig) -> None:
    """Raise CheckpointError unless the tensors in `folder` are the weights of `model`, each named where it is not."""
    weights = _weights(stored, config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    placed: dict[str, StoredTensor] = {}
    left = []
    for name, tensor in weights.items():
        place = _place(name, shapes)
        if place is None:
            left.append(name)
        elif place in placed:
            raise CheckpointError(f"{folder} holds {place} twice, as {placed[place].name} and as {name}")
        else:
            placed[place] = tensor
    tied = {EMBEDDING, HEAD} if config.tie_word_embeddings and {EMBEDDING, HEAD} & placed.keys() else set()
    lacking = sorted(shapes.keys() - placed.keys() - tied)
    if lacking:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} of the weights its config.json asks for ({lacking[0]}, ...):"
            " the folder is incomplete, or its config is not the one it was saved with"
        )
    if left:
        raise CheckpointError(
            f"{folder} holds {len(left)} weights that its config.json has no place for ({min(left)}, ...):"
            " its config is not the one it was saved with, or not of its model class"
        )
    for place, tensor in placed.items():
        if tensor.shape != shapes[place]:
            raise CheckpointError(
                f"{tensor.name} in {tensor.file} has shape {tensor.shape}, and config.json asks for {shapes[place]}:"
                " its config is not the one it was saved with"
            )


def check_finite(model: PreTrainedModel, folder: Path) -> None:
    """Raise CheckpointError for a weight that is not a number; each is read once, where it lies, and not copied."""
    import torch

    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.numel():
            continue
        ends = [float(end) for end in torch.aminmax(weight.detach())]
        if any(map(math.isnan, ends)):
            raise CheckpointError(f"{name} of {folder} holds NaN: whatever wrote the model went wrong, get a whole one")
        if any(map(math.isinf, ends)):
            raise CheckpointError(
                f"{name} of {folder} holds infinite values as {weight.dtype}: load it in a larger --dtype, or get a"
                " whole one"
            )


def _weights(stored: Stored, config: PretrainedConfig) -> dict[str, StoredTensor]:
    """What must have a place. Raises CheckpointError for what is quantized in a way that nothing reads."""
    scaled, scales = set(), set()
    if quantized_by(config) == FP8:
        scaled = {name for name, tensor in stored.items() if tensor.dtype in _FP8_TYPES and _has_scale(name, stored)}
        scales = {name + _SCALE for name in scaled} | {n for n in stored if n.endswith(_ACTIVATION_SCALE)}
    weights = {name: t for name, t in stored.items() if not is_old_buffer(name) and name not in scales}
    for name, tensor in weights.items():
        if not tensor.is_float and name not in scaled:
            raise CheckpointError(
                f"{name} in {tensor.file} is stored as {tensor.dtype}, with no scale that is read: the model is"
                " quantized; prune the unquantized one"
            )
    return weights


def _has_scale(name: str, stored: Stored) -> bool:
    return name + _SCALE in stored and stored[name + _SCALE].is_float


def _place(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The weight of a model that transformers loads `name` into: with or without the prefix of its backbone."""
    candidates = (name.removeprefix(_PREFIX), name, _PREFIX + name)
    return next((candidate for candidate in candidates if candidate in shapes), None)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    import torch

    if one.shape != other.shape:
        return False
    pairs = zip(one.read().split(_ROWS), other.read().split(_ROWS), strict=True)
    return all(torch.equal(a.float(), b.float()) for a, b in pairs)
