"""What models take of tokens, and perplexity."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimcore
from slimcore.calibration import as_ids
from slimcore.errors import TextError
from slimcore.structure import decoder
from tests.helpers import ids, mean_nll, models_drawn, tiny


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
