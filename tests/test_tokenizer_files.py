"""Tokenizers that are not whole: a line that names the file and says what to do, and never one without words."""

import base64
import importlib.util
import json
import shutil

import pytest

import slimcore
from slimcore import tokenizer as reader
from slimcore.errors import CheckpointError
from slimcore.models import load_meta
from tests.helpers import tiny
from tests.test_weights import POINTER

SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 9
TIKTOKEN = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A checkpoint with a tokenizer."""
    return slimcore.save(tiny(), tmp_path / "model", tokenizer=tokenizer)


@pytest.fixture
def bare(monkeypatch):
    """Nothing that reads a tokenizer.model is installed."""
    find = importlib.util.find_spec
    hidden = ("sentencepiece", "google", "google.protobuf", "tiktoken")
    monkeypatch.setattr(reader, "find_spec", lambda name: None if name in hidden else find(name))


def half(path):
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only(folder, **files):
    """Leave no file of the tokenizer but these."""
    for path in folder.glob("*token*"):
        path.unlink()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer, .*git lfs pull"),
        (lambda f: half(f / "tokenizer.json"), r"cannot read .*tokenizer\.json: "),
        (lambda f: half(f / "tokenizer_config.json"), r"cannot read .*tokenizer_config\.json: "),
        (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'), r"cannot use .*tokenizer\.json: .*whole\?"),
        (
            lambda f: (f / "tokenizer.json").unlink(),
            r"has a tokenizer_config\.json and no vocabulary, as tokenizer\.json",
        ),
        (lambda f: only(f, special_tokens_map__json=b"{}"), r"has a special_tokens_map\.json and no vocabulary"),
        (lambda f: only(f, tokenizer__model=POINTER.encode()), r"tokenizer\.model is a Git LFS pointer"),
        (lambda f: only(f, tokenizer__model=SENTENCEPIECE), r"tokenizer\.model .*: pip install sentencepiece protobuf"),
        (
            lambda f: only(f, tokenizer__model=TIKTOKEN),
            r"tokenizer\.model is read by tiktoken, .*: pip install tiktoken",
        ),
        (lambda f: only(f, vocab__json=b'{"a": 0, "b": 1}'), r"cannot use .*vocab\.json: "),
        (lambda f: only(f, vocab__json=b"{}", merges__txt=POINTER.encode()), r"merges\.txt is a Git LFS pointer"),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_refused_by_its_file(folder, damage, message):
    """In one line, before any weight is read; what a model costs can be counted all the same."""
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        slimcore.load(folder)
    assert "\n" not in str(caught.value)
    assert slimcore.footprint(load_meta(folder)) == slimcore.footprint(tiny())


def test_a_tokenizer_without_words_is_refused(folder):
    """Settings that name a class which finds none of its files give three special tokens, and a fine perplexity."""
    only(
        folder, tokenizer_config__json=json.dumps({"tokenizer_class": "LlamaTokenizer"}).encode(), vocab__txt=b"a\nb\n"
    )
    with pytest.raises(CheckpointError, match=r"no word was read from .*vocab\.txt"):
        slimcore.load(folder)


def test_a_whole_tokenizer_is_enough_and_none_is_needed(folder):
    """A class by an old name, or another format's file not fetched, is no matter; without any file there is none."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LLaMATokenizer"}))
    assert len(slimcore.load(folder)[1]) == 256
    (folder / "tokenizer.model").write_text(POINTER)  # not asked for beside tokenizer.json
    assert len(slimcore.load(folder)[1]) == 256
    only(folder)
    assert slimcore.load(folder)[1] is None


def test_a_vocabulary_of_sentencepiece_alone_is_read_where_that_is_installed(folder, tmp_path):
    """As LLaMA-1 and Vicuna have it: words come back as they went in."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    pytest.importorskip("google.protobuf")
    (tmp_path / "text").write_text("".join(f"a line of {n} words, and {n % 7} more\n" for n in range(500)))
    trainer.train(input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="bpe",
                  byte_fallback=True, minloglevel=2, hard_vocab_limit=False)  # fmt: skip
    only(folder, tokenizer_config__json=b'{"tokenizer_class": "LlamaTokenizer"}')
    shutil.copy(tmp_path / "m.model", folder / "tokenizer.model")
    words = slimcore.load(folder)[1]
    assert len(words) > 256
    assert words.decode(words("a line of 8 words").input_ids, skip_special_tokens=True) == "a line of 8 words"
    half(folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"cannot use .*tokenizer\.model: .*\(is the file whole\?\)"):
        slimcore.load(folder)
