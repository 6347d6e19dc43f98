"""Counts, against published figures and against the weights themselves; on the meta device throughout."""

import pytest
import torch

import slimcore
from slimcore.cost import human
from slimcore.models import load_meta
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
