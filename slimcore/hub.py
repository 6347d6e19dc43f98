"""Models of the hub: what is small first, then only the weights that are loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slimcore.config import read_config
from slimcore.errors import CheckpointError, told_as
from slimcore.replacing import CONFIG_FILE, TERMS
from slimcore.weights import PICKLES, SAFETENSORS, weight_files

_SMALL = (
    CONFIG_FILE, "generation_config.json", "adapter_config.json", SAFETENSORS[1], PICKLES[1],
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "merges.txt", "*.jinja", *TERMS,
)  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_folder(name: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder with the model `owner/name` of the hub, of a branch, tag or commit; fetched where it is not here.

    Without `weights` only what describes the model. Raises CheckpointError, UnsupportedModelError; both before any
    weight is fetched, where the config tells.
    """
    folder = _fetch(name, _SMALL, revision)
    if not weights:
        return folder
    read_config(folder)
    if _COMMIT.fullmatch(folder.name):
        revision = folder.name  # of the small files, whatever has been pushed since
    if not (folder / SAFETENSORS[1]).is_file():
        _fetch(name, SAFETENSORS[:1], revision)
        if not any((folder / there).is_file() for there in (SAFETENSORS[0], PICKLES[1])):
            _fetch(name, PICKLES[:1], revision)
    missing = [file.relative_to(folder).as_posix() for file in weight_files(folder)[1] if not file.is_file()]
    if missing:
        _fetch(name, missing, revision)
    return folder


def _fetch(name: str, patterns: Sequence[str], revision: str | None) -> Path:
    """Fetch the files that match; their folder. Raises CheckpointError."""
    import huggingface_hub
    from huggingface_hub import errors

    what = f"cannot get {name!r} from the model hub"
    hint = "is the id right, and the hub reachable from here? a folder on this machine needs no hub"
    with told_as(CheckpointError, what, hint=hint):
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{what}: it is gated; accept its makers' terms on its page, then log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{what}: it has no branch, tag or commit {revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{what}: there is none, or it is private; is the id right? `hf auth login` opens private ones"
            ) from error
