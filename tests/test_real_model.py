"""The real SmolLM2-135M: loading, tokens, and the published behaviour of the criteria. Slow once: it is converted."""

import math

import pytest
import torch

import slimcore
from tests.helpers import mean_nll, skipped_logits


@pytest.fixture(scope="module")
def smollm2():
    """Model and tokenizer, read only."""
    return slimcore.load("smollm2-135m")


def test_it_is_an_ordinary_llama(smollm2):
    """30 layers, GQA 9 to 3, tied embeddings, and nothing left of its GGUF form."""
    model, _ = smollm2
    cost = slimcore.footprint(model)
    assert (cost.layers, cost.parameters) == (30, 134_515_008)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")


def test_its_tokenizer_is_smollm2s_own(smollm2):
    """Digits one by one and a space before a word kept with it: the Llama class would split otherwise."""
    _, tokenizer = smollm2
    assert tokenizer("Hello world, 1234").input_ids == [19556, 905, 28, 216, 33, 34, 35, 36]
    assert tokenizer.decode(tokenizer("A line.\n  Indented.").input_ids) == "A line.\n  Indented."


def test_it_speaks(smollm2):
    """Weights in the right places: perplexity is that of a model of this size, and the answer is English."""
    model, tokenizer = smollm2
    assert 15 < slimcore.perplexity(model, slimcore.heldout_tokens(tokenizer, limit=1024)).value < 45
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


def test_ppl_scores_equal_the_plain_loop_on_real_weights(smollm2):
    """One whole model run per layer gives the same NLL to 1e-5, and so the same order."""
    model, tokenizer = smollm2
    tokens = slimcore.calibration_tokens(tokenizer, samples=2, length=32)
    scores = slimcore.score(model, tokens, method="depth-ppl")
    plain = []
    for gap in range(30):
        kept = set(range(30)) - {gap}
        plain.append(float(mean_nll(skipped_logits(model, tokens.ids, kept), tokens.ids)))
    assert [math.log(v) for v in scores.values] == pytest.approx(plain, rel=1e-5)


def test_bfloat16_finds_the_same_lowest_layers(smollm2):
    """Half the memory; the order is that of fp32 wherever two scores differ by more than 2 %."""
    model, tokenizer = smollm2
    tokens = slimcore.calibration_tokens(tokenizer, samples=2, length=32)
    full = slimcore.score(model, tokens, method="depth-ppl").values
    half, _ = slimcore.load("smollm2-135m", dtype=torch.bfloat16)
    values = slimcore.score(half, tokens, method="depth-ppl").values
    pairs = [(i, j) for i in range(30) for j in range(30) if full[i] < full[j] / 1.02]
    assert len(pairs) > 300
    assert all(values[i] < values[j] for i, j in pairs)
