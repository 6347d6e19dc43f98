"""Where a checkpoint may be written: a place that takes it, and at most an older checkpoint there to be replaced."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slimcore.errors import CheckpointError, told_as
from slimcore.units import human

CONFIG_FILE = "config.json"
# Terms that a model's makers ask to be passed on with it.
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_FILES = (
    "*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt",
    "README.md", ".gitattributes", *TERMS, "recovery.png",
)  # fmt: skip


def check_writable(folder: Path, *, overwrite: bool) -> str | None:
    """What `save` would replace in `folder`, in words, or None: asked before the work, not after it.

    Raises CheckpointError where it could not be written, has content that may not be replaced, or any content while
    `overwrite` is False.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: give a folder to write the checkpoint to")
    with told_as(CheckpointError, f"cannot write {folder}"):
        files: list[Path] = []
        real = Path(os.path.realpath(folder))
        if real.is_dir():
            _check_place(folder)
            if any(real.iterdir()) and not overwrite:
                raise CheckpointError(f"{folder} is not empty: choose another folder, or overwrite it on purpose")
            files = files_to_replace(folder)
            if files and not os.access(real, os.W_OK | os.X_OK):
                raise CheckpointError(f"cannot write {folder}: its files may not be deleted")
        # Nothing but trying tells whether a folder can be written.
        Path(tempfile.mkdtemp(dir=_nearest(real), prefix=f".{real.name}.")).rmdir()
    if not files:
        return None
    size = sum(file.stat().st_size for file in files)
    return f"the checkpoint in {folder} ({len(files)} files, {human(size, 'B')})"


def check_room(folder: Path, needed: int) -> None:
    """Raise CheckpointError unless the disk of `folder` has `needed` bytes free; what is replaced stays until then."""
    with told_as(CheckpointError, f"cannot write {folder}"):
        free = shutil.disk_usage(_nearest(Path(os.path.realpath(folder)))).free
    if free < needed:
        raise CheckpointError(
            f"{folder} takes {human(needed, 'B')}, and its disk has {human(free, 'B')} free: make room, or choose"
            " another place"
        )


def files_to_replace(folder: Path) -> list[Path]:
    """The files of the checkpoint in `folder`, which are all that it holds; none where it is empty.

    Raises CheckpointError for any other folder, and for one that people work or live in.
    """
    _check_place(folder)
    entries = sorted(folder.iterdir())
    config = _config(folder)
    code = _code_files(config)
    strange = next((entry for entry in entries if not _is_of_checkpoint(entry, code)), None)
    only = "only a checkpoint and nothing else is replaced, so choose another folder"
    if strange is not None:
        kind = "a folder" if strange.is_dir() else "a file"
        raise CheckpointError(f"{folder} holds {strange.name}, {kind} that is of no checkpoint: {only}")
    if entries and "model_type" not in config:
        raise CheckpointError(f"{folder} holds {entries[0].name} and no {CONFIG_FILE} of a model: {only}")
    return entries


def _check_place(folder: Path) -> None:
    """Raise CheckpointError for a folder that may not be replaced whatever it holds."""
    users = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is none
    real, here, home = (Path(os.path.realpath(path)) for path in (folder, ".", users))
    for what, is_it in (
        ("the working folder, or one above it", real == here or real in here.parents),
        ("a home, or a folder of homes", real == home or real in home.parents),
        ("a mount point", os.path.ismount(real)),
    ):
        if is_it:
            raise CheckpointError(f"{folder} is {what}: give a folder inside it")


def _is_of_checkpoint(entry: Path, code: set[str]) -> bool:
    return entry.is_file() and (entry.name in code or any(fnmatchcase(entry.name, known) for known in _FILES))


def _config(folder: Path) -> dict[str, Any]:
    """What config.json holds, if it is there and whole."""
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _code_files(config: dict[str, Any]) -> set[str]:
    """Files of the model class that a config names, as `modeling_slimcore.py`."""
    named = config.get("auto_map")
    classes = [name for name in named.values() if isinstance(name, str)] if isinstance(named, dict) else []
    return {f"{name.split('--')[-1].split('.')[0]}.py" for name in classes}


def _nearest(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next((parent for parent in path.parents if parent.exists()), path)
