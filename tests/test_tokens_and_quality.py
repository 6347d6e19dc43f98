"""Texts, windows of tokens, and perplexity."""

import itertools
import math
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimcore
from slimcore import text
from slimcore.errors import TextError
from tests.helpers import byte_tokenizer, ids, mean_nll, models_drawn, tiny


def test_the_builtin_halves_share_no_document():
    """What is calibrated on is never measured on."""
    calibration, heldout = (text.read(None, half) for half in ("calibration", "heldout"))
    assert not set(calibration.documents) & set(heldout.documents)
    assert min(len("".join(t.documents)) for t in (calibration, heldout)) > 100_000


def test_several_texts_give_equal_shares_of_all_that_the_shortest_has(tmp_path, tokenizer):
    """Of 4 and of 9 windows, 4 each, where fewer than asked are enough; fewer where fewer are asked."""
    paths = [tmp_path / "short.txt", tmp_path / "long.txt"]
    for path, letter, windows in zip(paths, "ab", (4, 9), strict=True):
        path.write_text(letter * 16 * windows)

    def drawn(samples, least):
        tokens = slimcore.calibration_tokens(tokenizer, samples=samples, length=16, source=paths, least=least)
        return sorted(tokenizer.decode(ids)[0] for ids in tokens.ids)

    assert drawn(200, least=2) == list("aaaabbbb")
    assert drawn(6, least=2) == list("aaabbb")
    with pytest.raises(TextError, match=r"short.txt gives 4 windows of 16 tokens, 5 were asked"):
        drawn(200, least=10)


@given(st.integers(1, 40), st.integers(2, 200), st.integers(0, 5))
def test_calibration_windows_do_not_overlap(samples, length, seed):
    """Every window is drawn once: their places in the text are disjoint."""
    tokenizer = byte_tokenizer()
    numbered = text.Text("numbered", tuple(" ".join(f"{d}.{n:04}" for n in range(400)) for d in range(5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "read", lambda *_: numbered)
        tokens = slimcore.calibration_tokens(tokenizer, samples=samples, length=length, seed=seed)
        again = slimcore.calibration_tokens(tokenizer, samples=samples, length=length, seed=seed)
    assert tokens.ids.shape == (samples, length)
    assert tokens.describe() == again.describe()
    windows = [tokenizer.decode(row) for row in tokens.ids]
    whole = "\0".join(numbered.documents)
    if length >= 16:  # long enough to be found in one place only
        places = sorted(whole.index(w) for w in windows)
        assert all(b - a >= length for a, b in itertools.pairwise(places))


def test_heldout_windows_are_the_text_in_order(tokenizer, prose):
    """Consecutive, whole, from the front; with BOS each window begins with it and the text goes on."""
    content = prose.read_text()
    plain = slimcore.heldout_tokens(tokenizer, length=100, limit=1000, source=prose)
    assert tokenizer.decode(plain.ids.flatten()) == content[:1000]
    with_bos = slimcore.heldout_tokens(tokenizer, length=100, limit=1000, bos=True, source=prose)
    assert with_bos.ids.shape == (10, 100)
    assert set(with_bos.ids[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert tokenizer.decode(with_bos.ids[:, 1:].flatten()) == content[:990]
    assert (plain.bos, with_bos.bos) == (False, True)


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), (" \n ", "is empty"), ("too short", "gives 0 windows of 128 tokens")]
)
def test_an_empty_or_short_text_is_refused(tokenizer, tmp_path, content, message):
    """By the numbers it gave and the numbers asked."""
    path = tmp_path / "short.txt"
    path.write_text(content)
    with pytest.raises(TextError, match=message):
        slimcore.calibration_tokens(tokenizer, source=path)
    with pytest.raises(TextError):
        slimcore.heldout_tokens(tokenizer, source=path)


def test_a_missing_or_binary_file_is_refused(tokenizer, tmp_path):
    """A path that is not there is not taken for a data set."""
    with pytest.raises(TextError, match="no such text file"):
        slimcore.calibration_tokens(tokenizer, source=tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match="as UTF-8 text"):
        slimcore.calibration_tokens(tokenizer, source=tmp_path / "binary.txt")


@pytest.mark.parametrize("limit", [0, 100])
def test_a_limit_below_one_window_is_refused(tokenizer, limit):
    """There would be nothing to measure."""
    with pytest.raises(TextError, match="no window at all"):
        slimcore.heldout_tokens(tokenizer, length=128, limit=limit)


@pytest.mark.parametrize(
    "bad", [torch.tensor([[0, 256]]), torch.tensor([[-1, 0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([1, 2])]
)
def test_tokens_that_do_not_fit_the_model_are_refused(bad):
    """Before an index error deep inside: range, type and shape are named."""
    for use in (lambda: slimcore.score(tiny(), bad, method="depth-ppl"), lambda: slimcore.perplexity(tiny(), bad)):
        with pytest.raises(TextError, match=r"within 0\.\.255|integer ids"):
            use()


def test_scoring_without_tokens_is_refused():
    """depth-ppl has nothing to run on."""
    with pytest.raises(TextError, match="pass tokens"):
        slimcore.score(tiny(), method="depth-ppl")


@given(models_drawn(), st.integers(1, 6), st.integers(2, 30), st.integers(1, 7))
def test_perplexity_is_exp_of_the_pooled_mean(model, windows, length, batch_size):
    """As transformers' own logits give it, whatever the batches."""
    tokens = ids(windows, length)
    with torch.no_grad():
        expected = mean_nll(model(tokens, use_cache=False).logits, tokens)
    result = slimcore.perplexity(model, tokens, batch_size=batch_size)
    assert math.log(result.value) == pytest.approx(float(expected), rel=1e-5)
    assert result.predictions == windows * (length - 1)


def test_perplexity_records_its_conditions(tokenizer, prose):
    """Text, BOS policy, hashes of text, tokens and tokenizer: all that makes two figures comparable."""
    result = slimcore.perplexity(tiny(), slimcore.heldout_tokens(tokenizer, limit=512, bos=True, source=prose))
    record = result.as_dict()["tokens"]
    assert (record["text"], record["bos"], record["windows"]) == ("prose.txt", True, [4, 128])
    assert all(len(record[k]) == 64 for k in ("text_sha256", "tokens_sha256", "tokenizer_sha256"))


@pytest.mark.parametrize(
    ("source", "arguments", "split"),
    [
        ("books", ("books",), "train"),
        ("books:test", ("books",), "test"),
        ("org/books:plain:test", ("org/books", "plain"), "test"),
    ],
)
def test_a_data_set_is_read_by_name(monkeypatch, source, arguments, split):
    """NAME, NAME:SPLIT, NAME:CONFIG:SPLIT; blank rows dropped, the rest one document."""
    asked = []

    def load_dataset(*names, split):
        asked.append((names, split))
        return {"text": ["one", " ", "two"]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert text.read(source, "heldout") == text.Text(source, ("one\n\ntwo",))
    assert asked == [(arguments, split)]


def test_a_data_set_without_its_package_or_its_hub_is_refused(monkeypatch):
    """What is missing, and what to do."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"pip install 'slimcore\[datasets\]'"):
        text.read("wikitext", "heldout")

    def load_dataset(*_, **__):
        raise ConnectionError("no route to hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(TextError, match="no route to hub"):
        text.read("wikitext", "heldout")
