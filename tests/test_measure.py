"""Generating a cell: what is asked of an engine, what it gives back, and what a worker answers."""

import gc
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import slimcore
from slimcore.bench.grid.cells import WHOLE, Cell
from slimcore.bench.measure import engines, memory
from slimcore.bench.measure.clocks import Timeline
from slimcore.bench.measure.engines.compiled import Compiled
from slimcore.bench.measure.engines.eager import Eager, generated
from slimcore.bench.measure.generation import Generation, prompt
from slimcore.bench.measure.worker import Server
from slimcore.errors import TextError, UnknownNameError
from tests.helpers import VOCABULARY, tiny

CELL = Cell("tiny", "dense", 5, 4, 3, "eager", "fp32", "cpu")  # 5 in, 4 out, 3 rows


class Spy(Eager):
    """The engine eager, which keeps what it was asked for and what it gave, or does `instead`."""

    def __init__(self, model, instead=None):
        super().__init__(model)
        self.asked, self.given, self.instead = [], [], instead or super().generate

    def generate(self, ids, new_tokens, *, sample, mark):
        """Ids (M, T + N)."""
        self.asked.append((ids.tolist(), new_tokens, sample))
        self.given.append(self.instead(ids, new_tokens, sample=sample, mark=mark))
        return self.given[-1]


@pytest.mark.parametrize("shape", [(1, 1), (8, 12), (VOCABULARY - 2, 1), (300, 2)])
def test_prompts_have_exact_shape_distinct_rows_and_no_special_token(shape):
    """Seeded; rows differ while the vocabulary lasts."""
    ids = prompt(VOCABULARY, {0, 2}, shape, seed=1)
    assert ids.shape == shape
    assert torch.equal(ids, prompt(VOCABULARY, {0, 2}, shape, seed=1))
    assert not set(ids.flatten().tolist()) & {0, 2}
    if shape[0] <= VOCABULARY - 2:
        assert len({tuple(row) for row in ids.tolist()}) == shape[0]


def test_a_cell_generates_exactly_its_tokens_and_has_a_time_for_each():
    """Every run asks for the cell's length on the same prompt; memory's peaks are of the first run."""
    engine = Spy(tiny())
    generation = Generation(tiny(), engine, CELL, {2, 4})
    ran = [generation.run() for _ in range(3)]
    assert [(len(ids), len(ids[0]), new, sample) for ids, new, sample in engine.asked] == [(3, 5, 4, False)] * 3
    assert engine.asked[0] == engine.asked[1] == engine.asked[2]
    for one in ran:
        assert len(one.seconds) == 4
        assert one.seconds[0] > 0
        assert all(sooner < later for sooner, later in pairwise(one.seconds))
        assert one.joules is None
    if memory.forget_peak("cpu"):
        assert 0 < generation.peaks[2] <= generation.peaks[4]


def test_fewer_tokens_are_the_first_of_more():
    """So that one long generate tells the times of shorter ones: engines say which of them do this."""
    model = tiny()
    engine = Spy(model)
    for new in (9, 4, 1):
        Generation(model, engine, replace(CELL, output_tokens=new), ()).run()
    whole, *shorter = engine.given
    assert all(torch.equal(one, whole[:, : one.shape[1]]) for one in shorter)
    assert WHOLE == ("compiled",)


def test_a_model_that_stops_early_is_an_error_not_a_fast_model():
    """The length of the output is asserted on every call, and so is the number of tokens that were told."""
    model = tiny()
    early = Spy(model, lambda ids, new, **how: generated(model, ids, new - 1, **how))
    with pytest.raises(RuntimeError, match=r"returned \(3, 8\), not \(3, 9\): it stopped early"):
        Generation(model, early, CELL, ()).run()
    silent = Spy(model, lambda ids, new, *, sample, mark: generated(model, ids, new))
    with pytest.raises(RuntimeError, match="0 tokens of 4 were told"):
        Generation(model, silent, CELL, ()).run()


def test_more_tokens_than_the_models_context_are_refused():
    """Before anything is generated."""
    fits = replace(CELL, input_tokens=200, output_tokens=56)
    assert Generation(tiny(), Spy(tiny()), fits, ()).cell == fits
    with pytest.raises(TextError, match=r"200 input \+ 57 output tokens are more than the 256 of the model's context"):
        Generation(tiny(), Spy(tiny()), replace(fits, output_tokens=57), ())


def test_eager_generates_past_the_end_token():
    """With almost every token an end token, every row still gets all its tokens."""
    model = tiny()
    ids = prompt(VOCABULARY, set(), (4, 5), seed=0)
    model.generation_config.eos_token_id = [*range(VOCABULARY - 1)]
    assert generated(model, ids, 6).shape == (4, 11)


def test_tokens_are_drawn_where_that_is_asked():
    """Not the same ones each time; a generation hands on whether it is asked."""
    model = tiny(layers=2)
    engine = Spy(model)
    generation = Generation(model, engine, CELL, (), sample=True)
    assert [generation.run() and engine.asked[-1][2] for _ in range(4)] == [True] * 4
    assert len({str(ids.tolist()) for ids in engine.given}) > 1


def test_an_engine_is_made_anew_from_what_the_model_is_then():
    """Nothing that was compiled for an earlier one stays, neither when the next is made nor when it is closed."""
    model = tiny(layers=1)
    for end in (lambda engine: Compiled(model), Compiled.close):
        engine = Compiled(model)
        model.__dict__["_compiled_call"] = "stale"  # where transformers keeps it
        end(engine)
        assert "_compiled_call" not in model.__dict__


def test_an_engine_that_is_not_here_says_what_to_install():
    """vLLM is optional; a name that is none is told."""
    assert engines.missing("eager", "cpu") == ""
    assert engines.missing("compiled", "cuda") == ""
    assert "pip install vllm" in engines.missing("vllm", "cuda")
    with pytest.raises(UnknownNameError, match="did you mean 'eager'"):
        engines.start("eagre", tiny(), {})


def test_a_server_keeps_its_engine_for_a_cell_and_collects_no_garbage_while_it_runs():
    """Requests and answers as JSON has them; after an error nothing is open."""
    server = Server(SimpleNamespace())
    server._subject = SimpleNamespace(model=tiny())

    def opened(cell=CELL):
        how = {"cell": vars(cell), "lengths": [2, 4], "sample": False, "options": {}}
        return server.answer({"do": "open", **how}), server._engine

    try:
        told, engine = opened()
        assert told == {}
        assert not gc.isenabled()
        answers = [server.answer({"do": "run"}) for _ in range(2)]
        assert [len(answer["seconds"]) for answer in answers] == [4, 4]
        assert answers[0]["peaks"].keys() == ({"2", "4"} if memory.forget_peak("cpu") else set())
        assert opened()[1] is engine
        assert opened(replace(CELL, batch=1))[1] is not engine
        server._engine.generate = lambda *_, **__: int("broken")
        assert server.answer({"do": "run"})["error"].endswith("invalid literal for int() with base 10: 'broken'")
        assert server._engine is None
        assert "more than the 256" in opened(replace(CELL, output_tokens=999))[0]["error"]
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore")  # torch's compiler has its own, of itself
def test_compiled_generates_what_eager_does():
    """At two batches and lengths, for one token, for other prompts, and after the model was cut and written to.

    On a CPU every product, the head's too, which is wider than what torch reduces unasked, is a reduction for one row
    and packed for more.
    """
    from torch._dynamo.utils import counters

    model = tiny(layers=1)
    model.resize_token_embeddings(3000)
    ways = ("decompose_mm", "mkldnn_linear_weight_pack_matcher_count")
    for shape, new, way in (((1, 3), 9, ways[0]), ((1, 3), 1, None), ((2, 5), 1, None), ((2, 5), 6, ways[1])):
        counters.clear()
        engine = Compiled(model)
        # The second run: what is compiled holds nothing of the first but addresses, and is not compiled again.
        for seed in range(2):
            ids, marks = prompt(VOCABULARY, set(), shape, seed), []
            timeline = Timeline(())
            given = engine.generate(ids, new, sample=False, mark=lambda: marks.append(timeline.mark()))  # noqa: B023
            assert torch.equal(given, generated(model, ids, new))
            assert marks == [*range(1, new + 1)]
            assert all(sooner < later for sooner, later in pairwise(timeline.seconds()))
        assert {k: v for k, v in counters["inductor"].items() if k in ways} == ({way: 8} if way else {})
        with pytest.raises(ValueError, match="start another"):
            engine.generate(ids, new + 1, sample=False, mark=lambda: None)
        # The same object is cut; and written to: on a CPU weights are constants of what is compiled.
        slimcore.prune_(model, slimcore.select(slimcore.unscored(model, method="magnitude"), ratio=0.2, protect=(0, 0)))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(torch.randn_like(weight))
