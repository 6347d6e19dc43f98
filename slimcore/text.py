"""Text to calibrate and to measure on: a file, a `datasets` name, or the built-in prose that is always there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimcore.errors import TextError
from slimcore.files import sha256

BUILTIN = "python-topics"
Half = Literal["calibration", "heldout"]


@dataclass(frozen=True)
class Text:
    """Documents, and what to call them in a report."""

    name: str
    documents: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the documents in order."""
        return sha256("\0".join(self.documents).encode())


def read(source: str | Path | None, half: Half) -> Text:
    """Read a text.

    `source`: None, or `python-topics`, is the `half` of the built-in text; a path is a UTF-8 file, one
    document; `NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT` is a `datasets` name with a column `text`, got from its hub.
    Raises TextError where there is nothing to read.
    """
    if source is None or source == BUILTIN:
        return _builtin(half)
    path = Path(source)
    if path.exists():
        return _file(path)
    if path.suffix in (".txt", ".md", ".raw") or str(source).startswith((".", "/", "~")):
        raise TextError(f"no such text file: {source}")
    return _dataset(str(source))


def _builtin(half: Half) -> Text:
    """The English of Python's own language reference; topics in alphabetical order go to the two halves in turn."""
    from pydoc_data.topics import topics

    # Several topics share one document.
    documents = list(dict.fromkeys(topics[name].strip() for name in sorted(topics)))
    return Text(f"{BUILTIN}/{half}", tuple(documents[(0 if half == "calibration" else 1) :: 2]))


def _file(path: Path) -> Text:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read {path} as UTF-8 text: {error}") from None
    if not content.strip():
        raise TextError(f"{path} is empty: a text must have words to calibrate or measure on")
    return Text(path.name, (content,))


def _dataset(source: str) -> Text:
    name, *rest = source.split(":")
    split = rest.pop() if rest else "train"
    try:
        import datasets
    except ImportError:
        raise TextError(
            f"{source!r} is no file, and reading it as a data set needs the package 'datasets':"
            " pip install 'slimcore[datasets]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, *rest, split=split)
        content = "\n\n".join(row for row in rows["text"] if row.strip())
    except Exception as error:  # datasets raises whatever its hub and its file formats raise
        raise TextError(f"{source!r} is no file, and datasets cannot load it: {error}") from error
    if not content:
        raise TextError(f"the data set {source!r} has no text")
    return Text(source, (content,))
