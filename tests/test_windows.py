"""Windows of tokens: how they are drawn, of which kinds, with BOS or without, of chats."""

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import slimcore
from slimcore import text
from slimcore.errors import TextError
from tests.helpers import byte_tokenizer, ids


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


# Documents whose every stretch of 16 characters is found in one place only, of three kinds.
KINDS = ("prose", "talk", "code")
NUMBERED = text.Text(
    "builtin/numbered",
    tuple(
        " ".join(f"{kind[:2]}{d}.{n:04}" for n in range(140 + 60 * k)) for k, kind in enumerate(KINDS) for d in "123"
    ),
    tuple(kind for kind in KINDS for _ in "123"),
)


@given(st.integers(1, 60), st.integers(16, 120), st.integers(0, 5))
def test_calibration_windows_are_of_all_kinds_equally(tokenizer, samples, length, seed):
    """Their numbers differ by one at most, each window is of one document of its kind, and all are counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "read", lambda *_: NUMBERED)
        tokens = slimcore.calibration_tokens(tokenizer, samples=samples, length=length, seed=seed)
    counts = [tokens.kinds.count(kind) for kind in KINDS]
    assert sum(counts) == samples
    assert max(counts) - min(counts) <= 1
    assert tokens.describe()["kinds"] == Counter(tokens.kinds)
    places(tokenizer, tokens)


@given(st.integers(16, 120), st.integers(120, 20_000) | st.none())
def test_heldout_windows_of_any_limit_are_of_all_kinds_equally(tokenizer, length, limit):
    """In turn, so that the first windows are of all kinds, and of all documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "read", lambda *_: NUMBERED)
        tokens = slimcore.heldout_tokens(tokenizer, length=length, limit=limit)
    assert tokens.kinds == tuple(itertools.islice(itertools.cycle(KINDS), len(tokens.ids)))
    assert limit is None or len(tokens.ids) <= limit // length
    assert len({document for document, _ in places(tokenizer, tokens)[:9]}) == min(len(tokens.ids), 9)


def places(tokenizer, tokens):
    """The document and the place of each window, which is of its kind and overlaps no other."""
    found = []
    for kind, row in zip(tokens.kinds, tokens.ids, strict=True):
        window = tokenizer.decode(row)
        (document,) = [d for d in NUMBERED.by_kind()[kind] if window in d]
        found.append((document, document.index(window)))
    for (one, start), (other, after) in itertools.pairwise(sorted(found)):
        assert one != other or after - start >= tokens.ids.shape[1]
    return found


def test_the_builtin_text_has_its_share_among_other_texts(tokenizer, prose):
    """A share of it is spread over its kinds; other windows are of the kind that has their text's name."""
    tokens = slimcore.calibration_tokens(tokenizer, samples=20, source=["builtin", prose])
    assert Counter(tokens.kinds) == {**dict.fromkeys(text.KINDS, 2), "prose.txt": 10}
    both = {text.read(source, "calibration").digest for source in (None, prose)}
    assert tokens.text_hashes == both
    assert slimcore.heldout_tokens(tokenizer, limit=640).kinds == text.KINDS
    assert not slimcore.Tokens(ids()).text_hashes


@pytest.mark.parametrize("use", [slimcore.calibration_tokens, slimcore.heldout_tokens])
def test_windows_start_with_bos_where_the_tokenizer_adds_it(prose, use):
    """By default as the tokenizer does; True and False force it; it is counted in the length, and recorded."""
    plain, adding, without = byte_tokenizer(), byte_tokenizer(), byte_tokenizer()
    bos = plain.bos_token_id
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="! $A", special_tokens=[("!", bos)])
    without.bos_token = None
    for tokenizer, asked, expected in (
        (plain, None, False), (plain, True, True), (adding, None, True), (adding, False, False), (without, None, False),
    ):  # fmt: skip
        tokens = use(tokenizer, length=50, source=prose, bos=asked)
        assert tokens.bos is tokens.describe()["bos"] is expected
        assert bool((tokens.ids[:, 0] == bos).all()) is expected
        assert not (tokens.ids[:, 1:] == bos).any()
        assert tokens.ids.shape[1] == 50
    with pytest.raises(TextError, match="no BOS token"):
        use(without, length=50, source=prose, bos=True)


def test_chats_are_read_in_the_tokenizers_template(tmp_path):
    """As the model reads them, with one BOS where template and tokenizer both begin with it; no template: refused."""
    chat = [{"role": "user", "content": "ping" * 9}, {"role": "assistant", "content": "pong" * 9}]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for _ in range(3)))
    tokenizer = byte_tokenizer()
    with pytest.raises(TextError, match="no chat template"):
        slimcore.calibration_tokens(tokenizer, samples=3, length=16, source=path)
    tokenizer.chat_template = "!{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    plain = f"[user]{'ping' * 9}[assistant]{'pong' * 9}"
    assert (
        tokenizer.decode(slimcore.heldout_tokens(tokenizer, length=16, source=path).ids.flatten()[:90])
        == (f"!{plain}\n\n!{plain}"[:90])
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="! $A", special_tokens=[("!", tokenizer.bos_token_id)]
    )
    tokens = slimcore.calibration_tokens(tokenizer, samples=3, length=len(plain) + 1, source=path)
    assert [tokenizer.decode(row) for row in tokens.ids] == [f"!{plain}"] * 3
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TextError, match="refuses a chat of the text: roles must alternate"):
        slimcore.heldout_tokens(tokenizer, source=path)


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


def test_a_binary_file_is_refused(tokenizer, tmp_path):
    """A text is UTF-8."""
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match="as UTF-8 text"):
        slimcore.calibration_tokens(tokenizer, source=tmp_path / "binary.txt")


@pytest.mark.parametrize("limit", [0, 100])
def test_a_limit_below_one_window_is_refused(tokenizer, limit):
    """There would be nothing to measure."""
    with pytest.raises(TextError, match="no window at all"):
        slimcore.heldout_tokens(tokenizer, length=128, limit=limit)
