"""The tokenizer of a checkpoint folder: whole, none, or refused by the name of its file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from slimcore.config import check_fetched, read_json
from slimcore.errors import CheckpointError, told_as
from slimcore.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
# Each holds a vocabulary; transformers takes the first that is there.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")
# A line of tiktoken's: a token in base64, and its rank.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
_PACKAGES = {"sentencepiece": ("sentencepiece", "google.protobuf"), "tiktoken": ("tiktoken",)}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in `folder`, or None where it has no file of one. Raises CheckpointError where it is not whole."""
    from transformers import AutoTokenizer

    vocabulary = next(iter(_there(folder, _VOCABULARIES)), None)
    settings = _there(folder, _SETTINGS)
    if vocabulary is None:
        if not settings:
            return None
        raise CheckpointError(
            f"{folder} has a {settings[0].name} and no vocabulary, as tokenizer.json or tokenizer.model:"
            " fetch the tokenizer's other files, or delete what there is to go on without one"
        )
    for file in (vocabulary, *settings):
        read_json(file) if file.suffix == ".json" else check_fetched(file)
    if vocabulary.suffix == ".model":
        _check_packages(vocabulary)
    with told_as(CheckpointError, f"cannot use {vocabulary}", hint="is the file whole?"), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(f"no word was read from {vocabulary}: it is not what the settings beside it ask for")
    return tokenizer


def _there(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _check_packages(vocabulary: Path) -> None:
    """Raise CheckpointError where what reads a tokenizer.model is not installed."""
    with vocabulary.open("rb") as file:
        kind = "tiktoken" if _TIKTOKEN.match(file.read(200)) else "sentencepiece"
    missing = [name.split(".")[-1] for name in _PACKAGES[kind] if not _is_installed(name)]
    if missing:
        raise CheckpointError(
            f"{vocabulary} is read by {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
