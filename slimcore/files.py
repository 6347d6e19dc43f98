"""Writing whole or not at all: beside, then rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimcore.replacing import files_to_replace


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, as `new_file` does."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path`, to be filled, that becomes `path` when the block ends well, or is gone.

    A reader sees the old file or the new one, never a part, also after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; give what an ordinary open() would.
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` when the block ends well, and is gone when it does not.

    An empty folder or a checkpoint at `path` is replaced, and stays until the new one is whole; where `path` is a link,
    what it points to. Raises CheckpointError for any other folder there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        # mkdtemp, and safetensors, let nobody but the owner read; give what is ordinary.
        beside.chmod(0o777 & ~_umask())
        yield beside
        for file in beside.iterdir():
            if file.is_file():
                file.chmod(0o666 & ~_umask())
        _put(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(beside: Path, path: Path) -> None:
    """Make the folder `beside` the one at `path`, and delete of an older one the files that were looked at."""
    if not path.exists():
        beside.replace(path)
        return
    names = [file.name for file in files_to_replace(path)]
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.replace(old)
    try:
        beside.replace(path)
    except OSError:
        old.replace(path)
        raise
    for name in names:
        (old / name).unlink()
    old.rmdir()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
