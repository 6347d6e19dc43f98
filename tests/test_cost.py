"""Counts, against published figures and against the weights themselves; on the meta device throughout."""

import pytest
import torch

import slimcore
from slimcore.models import load_meta
from slimcore.units import human
from tests.helpers import tiny


@pytest.mark.parametrize(
    ("model", "layers", "parameters"),
    [
        ("llama-7b", 6, 5_524_115_456),
        ("llama-7b", 9, 4_916_965_376),
        ("llama-7b", 11, 4_512_198_656),
        ("vicuna-13b", 8, 10_478_228_480),
        ("vicuna-13b", 11, 9_526_615_040),
        ("vicuna-13b", 15, 8_257_797_120),
    ],
)
def test_published_counts_come_out_to_the_unit(model, layers, parameters):
    """Shortened LLaMA's sizes (arXiv 2402.02834, table 2), from the plan and from the cut model, without weights."""
    network = load_meta(model)
    plan = slimcore.select(slimcore.unscored(network, method="depth-ppl"), layers=layers)
    slimcore.prune_(network, plan)
    assert plan.parameters == slimcore.footprint(network).parameters == parameters
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("model", "method", "budget", "protect", "parameters"),
    [
        ("llama-7b", "llm-pruner", {"local_ratio": 0.25}, (4, 2), 5_422_977_024),
        ("llama-7b", "llm-pruner", {"local_ratio": 0.35}, (4, 2), 4_907_642_880),
        ("vicuna-13b", "llm-pruner", {"local_ratio": 0.35}, (4, 2), 9_240_939_520),
        ("llama-7b", "flap", {"params": 4_900_000_000}, (0, 0), 4_899_999_744),
        ("vicuna-13b", "flap", {"params": 9_500_000_000}, (0, 0), 9_500_000_000),
    ],
)
def test_published_widths_come_out_to_the_unit(model, method, budget, protect, parameters):
    """LLM-Pruner's counts; FLAP within half a structure of the figure's sizes. Protected layers are the defaults."""
    network = load_meta(model)
    plan = slimcore.select(slimcore.unscored(network, method=method), **budget)
    slimcore.prune_(network, plan)
    assert plan.protect == protect
    assert plan.parameters == slimcore.footprint(network).parameters
    assert plan.parameters == pytest.approx(parameters, abs=3 * 5120 if method == "flap" else 0)


def test_llm_pruners_widths_of_llama_7b():
    """24 heads and 8256 channels at a quarter, 21 and 7155 at 0.35; aligned 21 and 7168; in layers 4..29 alone."""
    scores = slimcore.unscored(load_meta("llama-7b"), method="llm-pruner")
    for local_ratio, multiple_of, widths in ((0.25, 1, (24, 8256)), (0.35, 1, (21, 7155)), (0.35, 64, (21, 7168))):
        plan = slimcore.select(scores, local_ratio=local_ratio, multiple_of=multiple_of)
        assert list(plan.width) == list(range(4, 30))
        assert {(len(w.kv_groups), len(w.channels)) for w in plan.width.values()} == {widths}


@pytest.mark.parametrize(("ratio", "layers"), [(0.20, 6), (0.27, 9), (0.35, 11)])
def test_published_ratios_are_the_published_layers_of_llama_7b(ratio, layers):
    """20, 27 and 35 % of 32 blocks."""
    plan = slimcore.select(slimcore.unscored(load_meta("llama-7b"), method="depth-ppl"), ratio=ratio)
    assert len(plan.removed) == layers


def test_footprint_by_hand():
    """Two layers, hidden 32, MLP 40, 4 heads of 8, 2 KV heads, 256 tokens, fp16, untied."""
    cost = slimcore.footprint(tiny(layers=2, dtype=torch.float16))
    projections = 32 * 32 + 2 * (16 * 32) + 32 * 32 + 3 * (32 * 40)
    block = projections + 2 * 32
    assert cost.block_parameters == 2 * block
    assert cost.parameters == 2 * block + 32 + 2 * 256 * 32
    assert cost.weight_bytes == 2 * cost.parameters
    assert cost.flops_per_token == 2 * (2 * projections + 256 * 32)
    assert cost.flops_per_position == 2 * 4 * 32
    assert cost.kv_bytes_per_token == 2 * 2 * 16 * 2


def test_tied_weights_count_once():
    """The head that is the embedding adds no parameter, and still costs its FLOPs."""
    tied, untied = (slimcore.footprint(tiny(tied=t)) for t in (True, False))
    assert untied.parameters - tied.parameters == 256 * 32
    assert untied.flops_per_token == tied.flops_per_token


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [(4_916_965_376, "", "4.9B"), (98_974_080, "", "99M"), (538_060_032, "B", "538.1MB"), (46_080, "B", "46.1kB")],
)
def test_human_sizes(count, unit, text):
    """As the field writes them."""
    assert human(count, unit) == text
