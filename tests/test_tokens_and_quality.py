"""Texts, windows of tokens, and perplexity."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import slimcore
from slimcore import text
from slimcore.calibration import as_ids
from slimcore.errors import TextError
from slimcore.structure import decoder
from tests.helpers import byte_tokenizer, ids, mean_nll, models_drawn, tiny


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
KINDS = ("tale", "talk", "code")
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


@pytest.mark.parametrize(
    "bad", [torch.tensor([[0, 256]]), torch.tensor([[-1, 0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([1, 2])]
)
def test_tokens_that_do_not_fit_the_model_are_refused(bad):
    """Before an index error deep inside: range, type and shape are named."""
    for use in (lambda: slimcore.score(tiny(), bad, method="depth-ppl"), lambda: slimcore.perplexity(tiny(), bad)):
        with pytest.raises(TextError, match=r"within 0\.\.255|integer ids"):
            use()


SMALL = tiny(layers=1)


@given(st.integers(2, 60), st.integers(2, 60))
def test_windows_longer_than_the_context_are_refused(context, length):
    """Both numbers are named; what fits is taken as it is."""
    view = decoder(SMALL)
    view.model.config.max_position_embeddings = context
    if length <= context:
        assert as_ids(ids(2, length), view).shape == (2, length)
    else:
        with pytest.raises(TextError, match=rf"windows of {length} tokens .* context of {context}: use shorter"):
            as_ids(ids(2, length), view)


def test_no_use_of_a_model_goes_beyond_its_context():
    """To score, to heal and to measure on such windows is refused, and the model is left as it was."""
    model, tokens = tiny(), ids(8, 300)
    plan = slimcore.select(slimcore.unscored(model, method="depth-magnitude"), layers=1, protect=(1, 1))
    for use in (
        lambda: slimcore.score(model, tokens, method="depth-ppl"),
        lambda: slimcore.heal_(model, plan, tokens),
        lambda: slimcore.perplexity(model, tokens),
    ):
        with pytest.raises(TextError, match="windows of 300 tokens are longer than the model's context of 256"):
            use()
    assert len(model.model.layers) == 6


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_the_context_is_what_the_rotary_embedding_is_stretched_to(rope, context):
    """What a model can hold is not refused."""
    view = decoder(tiny(layers=1))
    view.model.config.max_position_embeddings = 64
    view.model.config.rope_parameters = {"rope_theta": 10_000.0, **rope}
    assert view.context == context


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
