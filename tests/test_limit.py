"""The limit and the forecast: counted by hand, against what torch allocates, and against published sizes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcore.bench.grid import forecast, limit
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.grids import load_grids
from slimcore.bench.grid.limit import Device, gpu_named
from slimcore.bench.measure.protocol import Protocol
from slimcore.cost import footprint
from slimcore.errors import UnknownNameError
from tests.helpers import VOCABULARY, ids, models_drawn, tiny
from tests.test_grid import GRIDS

SLOW = Device("slow", flops=1e9, bandwidth=1e6, memory=1e9)  # bound by bytes
NARROW = Device("narrow", flops=1e3, bandwidth=1e12, memory=1e9)  # bound by FLOPs


@given(models_drawn())
def test_the_cache_is_counted_as_torch_allocates_it(model):
    """Keys and values after a real generate; the last token never enters."""
    tokens = ids(2, 7)
    done = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=4,
                          max_new_tokens=4, pad_token_id=0, return_dict_in_generate=True)  # fmt: skip
    layers = done.past_key_values.layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    assert limit.cache_bytes(footprint(model), (2, 7, 4)) == held


@given(models_drawn(), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_the_limit_is_bytes_or_flops_step_by_step(model, batch, inputs, outputs):
    """Where bytes bound it, all weights but the table once a step, and the cache; where FLOPs do, all products."""
    cost = footprint(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    table = model.get_input_embeddings().weight
    tied = table is model.lm_head.weight
    if not tied:
        weights -= table.numel() * table.element_size()
    row = 0 if tied else table.shape[1] * table.element_size()
    kv = cost.kv_bytes_per_token
    moved = weights + batch * inputs * (row + kv)
    products = batch * inputs * (cost.flops_per_token - cost.head_flops) + batch * cost.head_flops
    products += batch * cost.flops_per_position * sum(range(1, inputs + 1))
    for n in range(1, outputs):
        moved += weights + batch * row + batch * (inputs + n) * kv
        products += batch * (cost.flops_per_token + (inputs + n) * cost.flops_per_position)
    shape = (batch, inputs, outputs)
    assert limit.least_seconds(cost, shape, SLOW) == pytest.approx(moved / 1e6)
    assert limit.least_seconds(cost, shape, NARROW) == pytest.approx(products / 1e3)


def test_sizes_of_the_figure_are_exact():
    """LLaMA-7B in fp16: parameters, weights, cache a token, and the largest batches on 80 GB."""
    cells = load_grids(GRIDS)["figure"].narrow(models=["llama-7b"], methods=["dense", "depth-ppl"]).cells()
    dense, ours = (subject.costs for subject in forecast.planned(cells).values())
    assert (dense.parameters, dense.weight_bytes) == (6_738_415_616, 2 * 6_738_415_616)
    assert dense.kv_bytes_per_token == 2 * 2 * 32 * 4096
    assert ours.parameters == 4_916_965_376
    assert ours.kv_bytes_per_token == 2 * 2 * 23 * 4096
    batches = (1, 8, 16, 32, 64, 128, 256, 384)
    assert limit.largest_batch(dense, (12, 512), batches, gpu_named("h100")) == 128
    assert limit.largest_batch(ours, (12, 512), batches, gpu_named("h100")) == 256
    # One token a step at 3.35 TB/s: 13.2 GB without the embedding.
    assert limit.step(dense, 1, 13).seconds(gpu_named("h100")) == pytest.approx(13.2e9 / 3.35e12, rel=0.01)


def test_a_gpu_that_is_not_in_the_table_is_answered_with_the_nearest():
    """By name."""
    with pytest.raises(UnknownNameError, match="did you mean 'rtx4090'"):
        gpu_named("rtx-4090")


def test_the_peaks_are_the_canarys_best_readings():
    """Product and copy, over all cells."""
    device = limit.seen("cpu", [[0.02, 0.01], [], [0.01, 0.02]])
    assert device.flops == 2 * 640**3 / 0.01
    assert device.bandwidth == 2 * 2**26 / 0.01
    assert limit.seen("cpu", [[]]) is None


def forecasts(memory=1e12):
    """Two subjects, two panels, three batches."""
    cells = [
        Cell("tiny", method, 12, outputs, batch, "eager", "fp16", "cuda")
        for method in ("dense", "depth-ppl:2L")
        for outputs in (8, 16)
        for batch in (1, 2, 4)
    ]
    subjects = forecast.planned(cells)
    return forecast.forecast(cells, subjects, replace(SLOW, memory=memory), Protocol()), subjects


def test_larger_batches_of_what_cannot_fit_take_no_time():
    """The first is tried, the next are not."""
    found, subjects = forecasts()
    assert all(f.fits for f in found)
    small = subjects["tiny", "dense", "fp16"].costs.weight_bytes + 1
    found, _ = forecasts(small)
    dense = [f for f in found if f.cell.method == "dense" and f.cell.output_tokens == 8]
    assert [f.fits for f in dense] == [False] * 3
    assert [f.measuring > 0 for f in dense] == [True, False, False]


def test_a_budget_takes_the_most_telling_cells_first():
    """The ends of the batches, over both subjects; one ladder of lengths always, all cells when there is time."""
    found, subjects = forecasts()
    assert forecast.within(found, subjects, 1e9) == {f.cell for f in found}
    assert len({cell.ladder for cell in forecast.within(found, subjects, 0)}) == 1
    first = [f for f in found if f.cell.batch in (1, 4)]
    enough = sum(f.measuring for f in first) + forecast.building(subjects.values(), "cuda")
    assert forecast.within(found, subjects, enough * 1.001) == {f.cell for f in first}
    assert forecast.outside_in([1, 8, 16, 32, 64, 128, 256, 384]) == [1, 384, 32, 8, 128, 16, 64, 256]
    assert forecast.outside_in([5]) == [5]


def test_what_only_the_first_run_takes_is_planned_for():
    """Compiling a layer at a time; on a GPU an attention kernel for each length of the cache."""
    cells = [Cell("tiny", "dense", 12, 128, 1, engine, "fp16", "cuda") for engine in ("eager", "compiled")]
    subjects = forecast.planned(cells)
    for protocol in (Protocol(seconds=0.0), Protocol(seconds=60.0)):
        eager, compiled = forecast.forecast(cells, subjects, SLOW, protocol)
        assert eager.measuring > 128 * forecast.KERNELS + 3 * eager.seconds
        assert compiled.measuring > 8 * forecast.COMPILING["cuda"] + 3 * compiled.seconds


def test_the_vocabulary_and_the_head_are_part_of_the_footprint():
    """Tied or not."""
    for tied in (True, False):
        cost = footprint(tiny(tied=tied))
        assert cost.vocabulary == VOCABULARY
        assert cost.head_flops == 2 * VOCABULARY * 32
        assert cost.embedding_bytes == (0 if tied else VOCABULARY * 32 * 4)
