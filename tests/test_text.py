"""What a text is: the built-in one, files, rows of JSON, and data sets by name."""

import itertools
import json
import sys
import tomllib
import types
import unicodedata
from pathlib import Path

import pytest

from slimcore import text
from slimcore.errors import TextError

PACKAGE = Path(text.__file__).parent
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("half", "digest", "least"),
    [
        ("calibration", "96274fbefbb23c8a73f162a2f00c56f47c8e963b18f9869950dcd19eb47e4c0c", 180_000),
        ("heldout", "efb7a129824cdd940a6dc88a20b7385a46fb326f7445d8cd09e090073c662fe7", 60_000),
    ],
)
def test_the_builtin_text_is_the_same_everywhere(half, digest, least):
    """Perplexities of two machines are on one text: its hash is pinned, and each kind has enough of it."""
    found = text.read(None, half)
    assert found.digest == text.read("builtin", half).digest == digest
    of_kind = found.by_kind()
    assert tuple(of_kind) == text.KINDS
    assert all(least < sum(map(len, documents)) < 2 * least for documents in of_kind.values())


def test_the_builtin_halves_share_no_document_and_no_long_line():
    """What is calibrated on is never measured on."""
    calibration, heldout = (text.read(None, half).documents for half in ("calibration", "heldout"))
    assert not set(calibration) & set(heldout)
    long = [
        {line for document in half for line in document.split("\n") if len(line) > 80}
        for half in (calibration, heldout)
    ]
    assert not long[0] & long[1]


def test_the_builtin_text_is_plain():
    """UTF-8 with LF, no control characters but the form feeds between documents, no document twice."""
    paths = sorted((PACKAGE / "texts").glob("*/*.txt"))
    assert len(paths) == 2 * len(text.KINDS)
    for path in paths:
        content = path.read_bytes().decode("utf-8")
        odd = {c for c in content if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs")}
        assert odd == {"\n", "\f"}, path
        documents = content.split(text.BETWEEN_DOCUMENTS)
        assert len(set(documents)) == len(documents)
        assert min(map(len, documents)) > 1500


def test_the_builtin_text_is_in_the_package_with_its_sources():
    """All files of the folder are package data, and each kind says where it is from."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["slimcore"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert packed == {path for path in (PACKAGE / "texts").rglob("*") if path.is_file()}
    sources = (PACKAGE / "texts" / "SOURCES.md").read_text()
    assert all(f"\n## {kind.capitalize()}\n" in sources for kind in text.KINDS)


def test_a_text_is_the_same_by_any_path(tmp_path, monkeypatch):
    """A path, another spelling of it and a copy have one hash, and another text has another."""
    (tmp_path / "a.txt").write_text("The same words.")
    (tmp_path / "copy.md").write_text("The same words.")
    (tmp_path / "b.txt").write_text("Other words.")
    monkeypatch.chdir(tmp_path)
    names = ["a.txt", "./a.txt", str(tmp_path / "a.txt"), "copy.md", "b.txt"]
    digests = [text.read(name, "heldout").digest for name in names]
    assert len(set(digests[:4])) == 1
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    ("name", "rows", "documents"),
    [
        ("rows.jsonl", [{"text": "one", "id": 1}, {"text": " "}, {"text": "two\nlines"}], ("one", "two\nlines")),
        ("rows.json", [{"text": None}, {"text": "one"}], ("one",)),
        ("rows.jsonl:body", [{"text": "title", "body": "one"}], ("one",)),
        ("chats.jsonl", [{"messages": CHAT}, {"messages": []}], (CHAT,)),
        ("chats.jsonl:talk", [{"talk": CHAT}, {"talk": CHAT[:1]}], (CHAT, CHAT[:1])),
    ],
)
def test_each_row_of_a_file_is_a_document(tmp_path, name, rows, documents):
    """The column text, or messages, or the one that is named; rows without content are left out."""
    path = tmp_path / name.split(":")[0]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    found = text.read(f"{tmp_path}/{name}", "calibration")
    assert (found.name, found.documents) == (path.name, documents)


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("", '{"text": "one"}\n{"text": ', r"rows.jsonl, line 2 is not JSON"),
        ("", '{"body": "one", "id": 1}', r"has no column text or messages \(it has: body, id\)"),
        (":story", '{"text": "one"}', r"has no column story \(it has: text\)"),
        ("", '["one"]', r"has no column text or messages \(it has: none\)"),
        ("", '{"text": 7}', r"column text holds int, not a text or a list of messages"),
        (":m", '{"m": [{"from": "human", "value": "one"}]}', r"column m holds list, not a text or a list of messages"),
        ("", '{"text": " "}', r"is empty"),
        ("", "", r"is empty"),
    ],
)
def test_rows_that_hold_no_document_are_refused(tmp_path, column, content, message):
    """By line, by the columns there are, or by what stands in them."""
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(TextError, match=message):
        text.read(f"{tmp_path}/rows.jsonl{column}", "heldout")


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl", "absent.jsonl:text", "./absent"])
def test_a_missing_file_is_not_taken_for_a_data_set(name):
    """Nothing is asked of a hub for a mistyped path."""
    with pytest.raises(TextError, match="no such text file: absent"):
        text.read(name, "heldout")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`: what was asked of it, and a place for the rows it gives."""
    given = types.SimpleNamespace(asked=[], rows=[])

    def load_dataset(*names, split, streaming):
        given.asked.append((names, split, streaming))
        return given.rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return given


@pytest.mark.parametrize(
    ("source", "arguments", "split"),
    [
        ("books", ("books",), "train"),
        ("books:test", ("books",), "test"),
        ("org/books:plain:test", ("org/books", "plain"), "test"),
    ],
)
def test_a_data_set_is_streamed_by_name(hub, source, arguments, split):
    """NAME, NAME:SPLIT, NAME:CONFIG:SPLIT; each row that is not blank is a document."""
    hub.rows = [{"text": "one"}, {"text": " "}, {"text": "two"}]
    assert text.read(source, "heldout") == text.Text(source, ("one", "two"))
    assert hub.asked == [(arguments, split, True)]


def test_a_data_set_without_end_is_read_so_far_as_needed(hub):
    """Rows are taken until they have the stated number of characters."""
    hub.rows = ({"text": f"{n:0100}"} for n in itertools.count())
    found = text.read("endless", "calibration")
    assert sum(map(len, found.documents)) == text.CHARACTERS
    assert next(hub.rows)["text"] == f"{len(found.documents):0100}"


def test_a_data_set_without_its_package_its_hub_or_its_column_is_refused(monkeypatch, hub):
    """What is missing, and what to do."""
    hub.rows = [{"sentence": "one", "label": 1}]
    with pytest.raises(TextError, match=r"no column text or messages \(it has: sentence, label\)"):
        text.read("labels", "heldout")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"pip install 'slimcore\[datasets\]'"):
        text.read("wikitext", "heldout")

    def load_dataset(*_, **__):
        raise ConnectionError("no route to hub\nand a traceback of theirs")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(TextError, match=r"datasets cannot load it: no route to hub$"):
        text.read("wikitext", "heldout")
