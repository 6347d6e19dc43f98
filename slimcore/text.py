"""Texts to calibrate and to measure on: files, data sets by name, and the text that comes with slimcore."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from slimcore.errors import TextError, told_as
from slimcore.files import sha256

BUILTIN = "builtin"
KINDS = ("prose", "encyclopaedia", "documentation", "dialogue", "code")  # of the built-in text
BETWEEN_DOCUMENTS = "\n\f\n"  # in its files
COLUMNS = ("text", "messages")  # where the document of a row is, unless told
CHARACTERS = 4_000_000  # of a data set: rows are read until there are so many

Half = Literal["calibration", "heldout"]
Chat = list[dict[str, Any]]  # messages, each with a role and content
Document = str | Chat


@dataclass(frozen=True)
class Text:
    """Documents, and what to call them in a report."""

    name: str
    documents: tuple[Document, ...]
    kinds: tuple[str, ...] = ()  # one a document; empty: all are of one kind, which has the text's name

    @property
    def digest(self) -> str:
        """SHA-256 over the documents in order: texts that have the same one are the same text."""
        return sha256("\0".join(map(_plain, self.documents)).encode())

    def by_kind(self) -> dict[str, list[Document]]:
        """The documents of each kind."""
        kinds = self.kinds or (self.name,) * len(self.documents)
        found: dict[str, list[Document]] = {kind: [] for kind in kinds}
        for kind, document in zip(kinds, self.documents, strict=True):
            found[kind].append(document)
        return found


def read(source: str | Path | None, half: Half) -> Text:
    """Read a text.

    `source`: None, or `builtin`, is the `half` of the built-in text, whose documents are of KINDS (slimcore/texts). A
    path is a UTF-8 file, one document. FILE.jsonl, FILE.json, or one of them with :COLUMN, has a JSON object in each
    line. NAME, NAME:SPLIT or NAME:CONFIG:SPLIT is a `datasets` name, streamed from its hub: its first rows, until they
    have CHARACTERS. Each row is a document: its column `text`, or `messages`, a list of {role, content}; rows without
    content are left out. Raises TextError where there is nothing to read.
    """
    if source is None or source == BUILTIN:
        return _builtin(half)
    lines = re.fullmatch(r"(.+\.jsonl?)(?::([^:]+))?", str(source))
    path = Path(lines[1] if lines else source)
    if path.exists():
        return _lines(path, lines[2]) if lines else Text(path.name, (_content(path),))
    if lines or path.suffix in (".txt", ".md", ".raw") or str(source).startswith((".", "/", "~")):
        raise TextError(f"no such text file: {path}")
    return _dataset(str(source))


def _builtin(half: Half) -> Text:
    folder = files("slimcore") / "texts" / half
    of_kind = {kind: (folder / f"{kind}.txt").read_text(encoding="utf-8").strip("\n") for kind in KINDS}
    found = [(kind, document) for kind in KINDS for document in of_kind[kind].split(BETWEEN_DOCUMENTS)]
    return Text(f"{BUILTIN}/{half}", tuple(d for _, d in found), tuple(kind for kind, _ in found))


def _content(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read {path} as UTF-8 text: {error}") from None
    if not content.strip():
        raise TextError(f"{path} is empty: a text must have words to calibrate or measure on")
    return content


def _lines(path: Path, column: str | None) -> Text:
    rows = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise TextError(f"{path}, line {number} is not JSON ({error}): each line must be one JSON object") from None
    return Text(path.name, _documents(rows, str(path), column))


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
    with told_as(TextError, f"{source!r} is no file, and datasets cannot load it"):
        rows = datasets.load_dataset(name, *rest, split=split, streaming=True)
        return Text(source, _documents(rows, source, None, most=CHARACTERS))


def _documents(rows: Iterable[Any], source: str, column: str | None, most: int | None = None) -> tuple[Document, ...]:
    """The documents of `rows`, until they have `most` characters."""
    found: list[Document] = []
    size = 0
    for row in rows:
        document = _document(row, source, column)
        if document and _plain(document).strip():
            found.append(document)
            size += len(_plain(document))
        if most is not None and size >= most:
            break
    if not found:
        raise TextError(f"{source} is empty: a text must have words to calibrate or measure on")
    return tuple(found)


def _document(row: Any, source: str, column: str | None) -> Document | None:
    there = row if isinstance(row, dict) else {}
    name = column or next((one for one in COLUMNS if one in there), None)
    if name not in there:
        raise TextError(
            f"{source} has no column {column or ' or '.join(COLUMNS)} (it has: {', '.join(map(str, there)) or 'none'}):"
            " name one of a file as FILE.jsonl:COLUMN"
        )
    value = there[name]
    messages = isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    if value is None or isinstance(value, str) or messages:
        return value  # type: ignore[no-any-return] # JSON
    raise TextError(
        f"{source}: column {name} holds {type(value).__name__}, not a text or a list of messages (role, content)"
    )


def _plain(document: Document) -> str:
    """The document as one string that only an equal document has."""
    return document if isinstance(document, str) else json.dumps(document, sort_keys=True, ensure_ascii=False)
