"""The real SmolLM2-135M: loading, tokens, and the published behaviour of the criteria. Slow once: it is converted."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slimcore
from slimcore.plan import HEALING_WINDOWS
from tests.helpers import ids, in_a_fresh_process, masked_logits, mean_nll, skipped_logits


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


def test_grouped_queries_of_nine_heads_are_scored_and_cut(smollm2):
    """Three KV groups of three heads each: what the published code for this method cannot do."""
    model, tokenizer = smollm2
    tokens = slimcore.calibration_tokens(tokenizer, samples=2, length=32)
    scores = slimcore.score(model, tokens, method="llm-pruner")
    plan = slimcore.select(scores, ratio=0.2)
    assert "no KV group goes (one is 33%" in str(plan)
    plan = slimcore.select(scores, ratio=0.27)
    assert {len(w.kv_groups) for w in plan.width.values()} == {2}
    assert plan.ratio == pytest.approx(0.27, abs=0.002)


@settings(max_examples=6)
@given(
    method=st.sampled_from(["llm-pruner", "flap", "wanda-sp", "magnitude"]),
    ratio=st.floats(0.02, 0.4),
    multiple_of=st.sampled_from([1, 64]),
)
def test_any_cut_of_it_equals_it_masked(smollm2, method, ratio, multiple_of):
    """Real weights and activations: the pruned model's logits are the masked dense model's, FLAP's biases included."""
    model, tokenizer = smollm2
    tokens = slimcore.calibration_tokens(tokenizer, samples=2, length=32)
    plan = slimcore.select(slimcore.score(model, tokens, method=method), ratio=ratio, multiple_of=multiple_of)
    expected = masked_logits(model, tokens.ids, plan)
    pruned, _ = slimcore.load("smollm2-135m")
    slimcore.prune_(pruned, plan)
    with torch.no_grad():
        logits = pruned(tokens.ids).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert slimcore.footprint(pruned).parameters == plan.parameters


def test_its_checkpoint_needs_transformers_alone(smollm2, tmp_path):
    """FLAP at 20 %: a fresh process without slimcore reproduces the logits with the code beside the weights."""
    model, tokenizer = smollm2
    tokens = slimcore.calibration_tokens(tokenizer, samples=3, length=12)
    plan = slimcore.select(slimcore.score(model, tokens, method="flap"), ratio=0.2)
    pruned, _ = slimcore.load("smollm2-135m")
    slimcore.prune_(pruned, plan)
    folder = slimcore.save(pruned, tmp_path / "slim", plan=plan, tokenizer=tokenizer)
    with torch.no_grad():
        assert torch.equal(in_a_fresh_process(folder, tmp_path, trust=True), pruned(ids()).logits)


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


def test_healing_helps_kinds_of_text_that_it_has_not_seen(smollm2):
    """The default windows are there in the built-in text; 16 of them, none of them code, do for code too."""
    _, tokenizer = smollm2
    samples, length = HEALING_WINDOWS
    assert slimcore.calibration_tokens(tokenizer, samples=samples, length=length).ids.shape == HEALING_WINDOWS
    few = slimcore.calibration_tokens(tokenizer, samples=20, length=length)
    seen = [number for number, kind in enumerate(few.kinds) if kind != "code"]
    tokens = replace(few, ids=few.ids[seen], kinds=tuple(few.kinds[number] for number in seen))
    heldout = slimcore.heldout_tokens(tokenizer, limit=10 * 128)
    unseen = heldout.ids[[kind == "code" for kind in heldout.kinds]]
    perplexities = []
    for heals in (False, True):
        model, _ = slimcore.load("smollm2-135m")
        plan = slimcore.select(slimcore.score(model, method="depth-magnitude"), layers=8)
        if heals:
            slimcore.heal_(model, plan, tokens)
        else:
            slimcore.prune_(model, plan)
        perplexities.append([slimcore.perplexity(model, ids).value for ids in (heldout.ids, unseen)])
    assert perplexities[1][0] < 0.8 * perplexities[0][0]
    assert perplexities[1][1] < 0.9 * perplexities[0][1]
