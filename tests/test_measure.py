"""Timing a cell: what is asserted, repeated, and released; a fake clock where a real one would only add noise."""

import gc
import warnings
import weakref
from pathlib import Path

import pytest
import torch

import slimcore
from slimcore.bench.grid.cells import Cell
from slimcore.bench.measure import engines
from slimcore.bench.measure import timing as measure
from slimcore.bench.measure.clocks import by_host
from slimcore.bench.measure.environment import software
from slimcore.bench.measure.timing import Protocol, prompt
from slimcore.errors import is_out_of_memory
from tests.helpers import VOCABULARY, tiny

CELL = Cell("tiny", "dense", 5, 4, 3, "eager", "fp32", "cpu")
QUICK = Protocol(seconds=0.0, repeats=(2, 2), warmups=(1, 1))


@pytest.fixture
def engine(monkeypatch):
    """Put a function in the place of the eager engine."""
    return lambda function: monkeypatch.setitem(engines.ENGINES, "eager", function)


@pytest.mark.parametrize("shape", [(1, 1), (8, 12), (VOCABULARY - 2, 1), (300, 2)])
def test_prompts_have_exact_shape_distinct_rows_and_no_special_token(shape):
    """Seeded; rows differ while the vocabulary lasts."""
    ids = prompt(VOCABULARY, {0, 2}, shape, seed=1)
    assert ids.shape == shape
    assert torch.equal(ids, prompt(VOCABULARY, {0, 2}, shape, seed=1))
    assert not set(ids.flatten().tolist()) & {0, 2}
    if shape[0] <= VOCABULARY - 2:
        assert len({tuple(row) for row in ids.tolist()}) == shape[0]


def test_a_cell_generates_exactly_its_tokens(engine):
    """Every call asks for the cell's length or for one token, in pairs, on the same prompt."""
    calls = []

    def spy(model, ids, new, *, sample):
        calls.append((tuple(ids.shape), new))
        assert not sample
        return engines.eager(model, ids, new)

    engine(spy)
    timing = measure.measure(tiny(), CELL, QUICK)
    assert timing.status == "ok"
    assert calls == [((3, 5), n) for n in (4, 1, 1, 4, 1, 4)]
    assert len(timing.latency_s) == len(timing.ttft_s) == 2
    assert timing.peak_bytes is None or timing.peak_bytes > 0


def test_a_model_that_stops_early_is_an_error_not_a_fast_model(engine):
    """The length of the output is asserted on every call."""
    engine(lambda model, ids, new, **_: engines.eager(model, ids, max(1, new - 1)))
    with pytest.raises(RuntimeError, match="it stopped early"):
        measure.measure(tiny(), CELL, QUICK)


def test_eager_generates_past_the_end_token():
    """With almost every token an end token, every row still gets all its tokens."""
    model = tiny()
    ids = prompt(VOCABULARY, set(), (4, 5), seed=0)
    model.generation_config.eos_token_id = [*range(VOCABULARY - 1)]
    assert engines.eager(model, ids, 6).shape == (4, 11)


def test_the_papers_protocol_samples_and_runs_ten_and_twenty(engine):
    """Tokens are drawn; mean and deviation come of exactly 20 runs."""
    drawn = []

    def spy(model, ids, new, *, sample):
        drawn.append(sample)
        return engines.eager(model, ids, new, sample=sample)

    engine(spy)
    timing = measure.measure(tiny(layers=2), CELL, measure.PAPER)
    assert (len(timing.warmup_s), len(timing.latency_s)) == (10, 20)
    assert all(drawn)
    assert len({tuple(engines.eager(tiny(), prompt(VOCABULARY, set(), (1, 3), 0), 8, sample=True)[0].tolist())
                for _ in range(4)}) > 1  # fmt: skip


def test_compiled_generates_what_eager_does():
    """Greedy tokens are equal at two batches and lengths, for one token, and for other prompts.

    What is compiled holds nothing of the first run but addresses.
    """
    model = tiny(layers=1)
    with measure.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's compiler has its own, of itself
        for seed, (shape, new) in enumerate([((1, 3), 9), ((1, 3), 9), ((1, 3), 1), ((2, 5), 1), ((2, 5), 6)]):
            ids = prompt(VOCABULARY, set(), shape, seed)
            assert torch.equal(engines.compiled(model, ids, new), engines.eager(model, ids, new))
        # The same model object, cut, at the shape that is compiled.
        slimcore.prune_(model, slimcore.select(slimcore.unscored(model, method="magnitude"), ratio=0.4, protect=(0, 0)))
        assert torch.equal(engines.compiled(model, ids, 6), engines.eager(model, ids, 6))
        # And written to: on a CPU weights are constants of what is compiled.
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(torch.randn_like(weight))
        assert torch.equal(engines.compiled(model, ids, 6), engines.eager(model, ids, 6))


@pytest.mark.parametrize(("rows", "how"), [(1, "decompose_mm"), (2, "mkldnn_linear_weight_pack_matcher_count")])
def test_compiled_on_a_cpu_reduces_one_row_and_packs_more(rows, how):
    """Every product is counted, the head's too, which is wider than what torch reduces unasked; none the other way."""
    from torch._dynamo.utils import counters

    model = tiny(layers=1)
    model.resize_token_embeddings(3000)
    counters.clear()
    with measure.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engines.compiled(model, prompt(VOCABULARY, set(), (rows, 3), 0), 3)
    seen = {
        k: v
        for k, v in counters["inductor"].items()
        if k in {"decompose_mm", "mkldnn_linear_weight_pack_matcher_count"}
    }
    assert seen == {how: 8}


def test_what_the_environment_tells_torch_is_recorded(monkeypatch):
    """It may change a time; where files lie does not."""
    monkeypatch.setenv("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    settings = software(Path(), "cpu")["settings"].split()
    assert "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1" in settings
    assert not any("CACHE_DIR" in s for s in settings)


def test_an_engine_that_is_not_here_says_what_to_install():
    """vLLM is optional."""
    assert engines.missing("eager", "cpu") == ""
    assert "pip install vllm" in engines.missing("vllm", "cuda")


def clock(monkeypatch, *seconds):
    """Let each timed call take the next of `seconds`, then the last again and again."""
    left = list(seconds)
    monkeypatch.setattr(measure.Generation, "_timed", lambda *_: left.pop(0) if len(left) > 1 else left[0])


def test_warm_up_goes_on_until_three_agree_and_is_capped(monkeypatch):
    """2 % apart is agreement; a machine that never settles is measured all the same."""
    protocol = Protocol(seconds=99.0, warmups=(3, 6), repeats=(1, 1))
    clock(monkeypatch, 3.0, 2.0, 1.0, 1.01, 1.0)
    assert measure.measure(tiny(), CELL, protocol).warmup_s == [3.0, 2.0, 1.0, 1.01, 1.0]
    clock(monkeypatch, *[float(n) for n in range(1, 99)])
    assert len(measure.measure(tiny(), CELL, protocol).warmup_s) == 6


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (2.0, 2), (5.0, 3), (99.0, 4)])
def test_long_runs_need_fewer_warm_ups(monkeypatch, seconds, count):
    """The runs after the first, which may have compiled, have half the time of the repeats."""
    clock(monkeypatch, 40.0, 2.0)
    assert len(measure.measure(tiny(), CELL, Protocol(seconds=seconds)).warmup_s) == count


def test_what_is_expected_of_a_cell_is_what_a_noisy_one_takes():
    """Repeats until the time is used; the published protocol's numbers whatever they take."""
    assert Protocol(seconds=6.0).expected(2.0, 0.5) == (3, 3)
    assert Protocol(seconds=6.0).expected(10.0, 0.1) == (2, 3)
    assert Protocol(seconds=6.0).expected(0.4, 0.1) == (3, 12)
    assert measure.PAPER.expected(10.0, 1.0) == (10, 20)
    assert [Protocol().again([1.0] * n) for n in (3, 5, 30)] == [3, 5, 15]


@pytest.mark.parametrize(
    ("seconds", "times", "count"),
    [
        (100.0, [1.0], 5),
        (0.0, [1.0, 2.0, 1.0, 3.0] * 9, 3),
        (13.0, [1.0, 2.0, 1.0, 3.0] * 9, 4),
        (1e9, [1.0, 2.0, 1.0, 3.0] * 9, 12),
    ],
    ids=["tight early", "time used at once", "time used", "at most"],
)
def test_repeats_end_when_tight_or_out_of_time(monkeypatch, seconds, times, count):
    """Five at least while there is time, three where a run takes all of it, never more than asked."""
    clock(monkeypatch, *times)
    timing = measure.measure(tiny(), CELL, Protocol(seconds=seconds, repeats=(5, 12), warmups=(1, 1)))
    assert len(timing.latency_s) == count


def test_running_out_of_memory_is_a_result_and_holds_nothing(engine):
    """The tensors of the failed call are gone, though the error was raised deep inside and in a chain."""
    born = []

    def hungry(_model, _ids, _new, **_):
        big = torch.zeros(1000)
        born.append(weakref.ref(big))
        try:
            raise ValueError("first")
        except ValueError as first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB") from first

    engine(hungry)
    timing = measure.measure(tiny(), CELL, QUICK)
    gc.collect()
    assert (timing.status, timing.latency_s) == ("oom", [])
    assert "Tried to allocate 9 GiB" in timing.detail
    assert born[0]() is None


def test_the_cpu_allocators_refusal_is_out_of_memory_and_other_errors_are_not():
    """The message is torch's own: asked for more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_memory_that_does_not_come_back_is_told(monkeypatch):
    """The allocator's figure before and after, on a CUDA device that is played here."""

    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory")

    figures = iter([100, 10**9 + 100, 100, 1000])
    monkeypatch.setattr(measure, "allocated", lambda _device: next(figures))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    told = measure.unless_out_of_memory(refuse, "cuda")
    assert told == (None, measure.Refusal("CUDA out of memory (1,000,000,000 bytes stayed allocated)", 10**9))
    # A workspace of a library is no leak.
    assert measure.unless_out_of_memory(refuse, "cuda") == (None, measure.Refusal("CUDA out of memory"))


def test_memory_is_summed_over_the_gpus(monkeypatch):
    """A model may be spread over them: what is held, and each one's own peak."""
    held = {0: 5, 1: 7}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", held.get)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", {0: None, 1: None}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: 10 * held[gpu])
    assert measure.allocated("cuda") == 12
    timing = measure.Timing("ok")
    with measure.peak_memory("cuda", timing):
        pass
    assert timing.peak_bytes == 120


def test_all_gpus_of_a_model_are_waited_for(monkeypatch):
    """Before and after the work."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    by_host(lambda: waited.append("work"), [0, 2])
    assert waited == [0, 2, "work", 0, 2]
