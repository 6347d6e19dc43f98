"""What only a CUDA device can show: the same results as on a CPU, memory that comes back, clocks and joules."""

import copy
import gc

import pytest
import torch

import slimcore
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.limit import least_bytes
from slimcore.bench.measure import memory
from slimcore.bench.measure.canary import Canary, at_hand
from slimcore.bench.measure.clocks import by_host
from slimcore.bench.measure.engines.compiled import Compiled
from slimcore.bench.measure.engines.eager import Eager, generated
from slimcore.bench.measure.generation import Generation, prompt
from slimcore.bench.measure.machine import has_cuda, machine_key
from slimcore.bench.measure.nvml import conditions, energy
from slimcore.bench.measure.software import software
from slimcore.bench.suite.workers import HERE
from slimcore.cost import footprint
from slimcore.methods import METHODS
from slimcore.models import load
from tests.helpers import VOCABULARY, ids, tiny

pytestmark = pytest.mark.skipif(not has_cuda(), reason="no CUDA device")

CELL = Cell("tiny", "dense", 12, 4, 2, "eager", "fp32", "cuda")


@pytest.fixture(autouse=True)
def exact():
    """Products in float32, not TF32, so that a CPU's can be compared with them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_cuts_are_those_of_a_cpu(method):
    """Every method: the same scores up to rounding, the same plan, the same pruned model."""
    here, there = tiny(), tiny().to("cuda")
    tokens = ids(windows=8, length=24)
    plans = []
    for model in (here, there):
        scores = slimcore.score(model, tokens, method=method, protect=(1, 1))
        plans.append(slimcore.select(scores, ratio=0.3, protect=(1, 1)))
        slimcore.prune_(model, plans[-1])
    assert plans[0].keep == plans[1].keep
    for layer, width in plans[0].width.items():
        assert (width.kv_groups, width.channels) == (plans[1].width[layer].kv_groups, plans[1].width[layer].channels)
    expected = slimcore.perplexity(here, tokens).value
    assert slimcore.perplexity(there, tokens).value == pytest.approx(expected, rel=1e-4)


def test_healing_is_that_of_a_cpu():
    """Depth and width: the refitted weights agree, and lie where the model lies."""
    dense, tokens = tiny(), ids(windows=16, length=24)
    for method in ("depth-magnitude", "flap"):
        plan = slimcore.select(slimcore.score(dense, tokens, method=method), ratio=0.3, protect=(1, 1))
        models = [copy.deepcopy(dense), copy.deepcopy(dense).to("cuda")]
        healed = [slimcore.heal_(model, plan, tokens).steps[0].healed for model in models]
        assert healed[1]["error_left"] == pytest.approx(healed[0]["error_left"], abs=1e-3)
        assert healed[1]["ridge"] == healed[0]["ridge"]
        assert healed[1]["perplexity"]["given"] == pytest.approx(healed[0]["perplexity"]["given"], rel=1e-3)
        assert {p.device.type for p in models[1].parameters()} == {"cuda"}


@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own, of itself
def test_engines_generate_the_same_tokens():
    """Compiled against eager, at two shapes, for another prompt, and after a cut of the same model object."""
    model = tiny(layers=4).to("cuda")
    for shape, new in (((1, 12), 8), ((4, 5), 8)):
        engine = Compiled(model)
        for seed in range(3):  # the graph is recorded in one of the first two runs, and replayed from then on
            tokens, marks = prompt(VOCABULARY, set(), shape, seed).to("cuda"), []
            given = engine.generate(tokens, new, sample=False, mark=lambda: marks.append(1))  # noqa: B023
            assert torch.equal(given, generated(model, tokens, new))
            assert len(marks) == new
        engine.close()
        slimcore.prune_(model, slimcore.select(slimcore.unscored(model, method="magnitude"), ratio=0.4, protect=(0, 0)))


def test_memory_that_ran_out_comes_back():
    """The allocator's own figure; and the next cell runs in the same process."""
    model, _ = load("llama-7b-mini", device="cuda")
    before = memory.allocated("cuda")
    free = torch.cuda.mem_get_info()[0]
    rows = free // (4 * 512 * 688)  # the MLP's hidden states alone are twice what is free
    huge = Cell("llama-7b-mini", "dense", 1024, 4, rows, "eager", "fp32", "cuda")
    with pytest.raises(memory.OutOfMemory, match="out of memory") as caught:
        memory.unless_out_of_memory(lambda: Generation(model, Eager(model), huge, (), sample=True).run(), "cuda")
    assert caught.value.kept == 0
    gc.collect()
    assert memory.allocated("cuda") - before < memory.SLACK
    assert torch.cuda.mem_get_info()[0] > 0.9 * free
    assert len(Generation(model, Eager(model), CELL, ()).run().seconds) == 4


def test_peak_is_at_least_what_was_counted():
    """Weights and the cache, to which only activations and workspaces come; fewer tokens have a lower one."""
    model, _ = load("llama-7b-mini", dtype="fp16", device="cuda")
    cell = Cell("llama-7b-mini", "dense", 82, 32, 64, "eager", "fp16", "cuda")
    generation = Generation(model, Eager(model), cell, (8, 32))
    generation.run()
    least = least_bytes(footprint(model), (64, 82, 32))
    assert least <= generation.peaks[32] < 4 * least
    assert generation.peaks[8] <= generation.peaks[32]
    assert len(Canary("cuda").read()) == 3


@pytest.mark.parametrize("on_host", [False, True])
def test_events_and_the_hosts_clock_agree(on_host):
    """Two clocks on one generate, which takes tens of milliseconds; the times of its tokens increase on both."""
    model, _ = load("llama-7b-mini", dtype="fp16", device="cuda")
    cell = Cell("llama-7b-mini", "dense", 12, 16, 1, "eager", "fp16", "cuda")
    engine = Eager(model)
    engine.on_host = on_host
    generation, ran = Generation(model, engine, cell, ()), []
    for _ in range(3):
        host = by_host(lambda: ran.append(generation.run()), generation.gpus)
    told = ran[-1].seconds
    assert told[-1] == pytest.approx(host, rel=0.5)
    assert told == tuple(sorted(set(told)))
    assert len(told) == 16


def test_the_device_says_what_it_is():
    """Peaks, conditions, joules where NVML is there, and a key without versions."""
    device = at_hand("cuda")
    assert device.flops > 1e12
    assert device.bandwidth > 1e11
    assert software(HERE, "cuda")["gpu"] == torch.cuda.get_device_name(0)
    assert "gb-x1-on-" in machine_key("cuda")
    pytest.importorskip("pynvml")
    told = conditions("cuda")
    assert told["sm_mhz"] > 0
    assert "throttled" in told
    before = energy([0])
    assert before is None or before >= 0
