"""`pytest perf` in runs of its own: what it measures, writes, resumes, accepts and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import slimcore
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.grids import Grid
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.measure.subject import Built
from slimcore.bench.records import results
from slimcore.bench.report.conclusion import Update, conclude, find
from slimcore.bench.suite import lanes, options, plugin, whole_run, workers
from slimcore.bench.suite.lanes import Machine
from slimcore.bench.suite.opening import Places
from slimcore.bench.suite.session import Options, Session
from slimcore.errors import ResultsError
from tests import doubles
from tests.helpers import ids, on_a_terminal, tiny

ROOT = Path(__file__).parent.parent
GRIDS = """
[cpu]
device = "cpu"
dtype = "fp32"
engines = ["eager"]
inputs = [3]
outputs = [2]
batches = [1, 2]
models = {tiny = ["dense", "depth-ppl:2L"]}

[figure]
device = "cuda"
dtype = "fp16"
engines = ["eager"]
inputs = [3]
outputs = [2]
batches = [1, 2, 4]
models = {tiny = ["dense"]}
"""
UPDATE = ("--perf-update", "--perf-reason=test", "--perf-allow=dirty,inconclusive")
REPLACE = ("--perf-update=replace", *UPDATE[1:])
DENSE = "tiny/dense/i3-o2/m{}/eager-fp32"
OURS = "tiny/depth-ppl:2L/i3-o2/m{}/eager-fp32"


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory, tokenizer, forked):
    """Go the whole road once: pytester forgets modules first imported inside of it, and torch minds coming twice."""
    root = tmp_path_factory.mktemp("whole-road")
    folder = slimcore.save(tiny(layers=8), root / "mine", tokenizer=tokenizer)
    grid = Grid("g", "cpu", "fp32", ("eager",), (3,), (2,), (1,), {str(folder): ("dense", "depth-ppl:2L")})
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(workers, "launch", forked)
    session = Session(grid, grid.cells(), Places(root, root, root), Protocol(seconds=0), Machine("cpu"))
    for cell in grid.cells():
        assert session.measure(cell).passes
    session.close()
    monkeypatch.undo()
    conclude(find(session.run, session.judge), update=Update("test", allow=["dirty", "inconclusive"]))


@pytest.fixture
def suite(pytester):
    """A checkout with the suite's own test and a tiny grid; run it with options."""
    pytester.makeconftest('pytest_plugins = ["slimcore.bench.suite.plugin"]')
    pytester.makeini("[pytest]\nmarkers =\n    cpu: x\n    gpu: x\naddopts = --strict-markers")
    perf = pytester.mkdir("perf")
    (perf / "grids.toml").write_text(GRIDS)
    (perf / "test_generation.py").write_text((ROOT / "perf" / "test_generation.py").read_text())
    return lambda *options: pytester.runpytest_inprocess("perf", "--perf-seconds=0", *options)


@pytest.fixture(autouse=True)
def install(monkeypatch, forked):
    """Workers are forked, at once there; call this to have them install doubles first."""
    monkeypatch.setattr(workers, "launch", forked)
    monkeypatch.setattr(forked, "doubles", [])
    return lambda double, *args, **kwargs: forked.doubles.append(doubles.partial(double, *args, **kwargs))


def lines(pytester, kind, run="*"):
    """Records of one kind, over all runs, in order."""
    text = "\n".join(p.read_text() for p in sorted(pytester.path.glob(f"reports/{run}/results.jsonl")))
    records = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [r | r.get("cell", {}) if kind == "cell" else r for r in records if r["kind"] == kind]


def cell_ids(pytester):
    """Of the cells that were measured, in order."""
    return [Cell(**{k: r[k] for k in Cell.__dataclass_fields__}).id for r in lines(pytester, "cell")]


def report_text(pytester):
    """The text of the one report."""
    (path,) = pytester.path.glob("reports/*/report.md")
    return path.read_text()


def test_a_run_measures_every_cell_and_writes_its_report_last(suite, pytester):
    """Ids in the output, one line a cell, models loaded once for dense and the method after it, the path at the end."""
    result = suite("-v")
    result.assert_outcomes(passed=4, deselected=3)
    result.stdout.fnmatch_lines([f"*[[]{DENSE.format(1)}[]]* s, * tokens/s, no baseline*"])
    assert cell_ids(pytester) == [i.format(m) for i in (DENSE, OURS) for m in (1, 2)]
    assert all(len(c["times"]["latency_s"]) == 3 and c["status"] == "ok" for c in lines(pytester, "cell"))
    assert [s["costs"]["layers"] for s in lines(pytester, "subject")] == [8, 6]
    assert [len(c.get("dense", {"own_s": []})["own_s"]) for c in lines(pytester, "cell")] == [0, 0, 3, 3]
    assert [b["cell"] for b in lines(pytester, "begun")] == cell_ids(pytester)
    result.stdout.fnmatch_lines(["* s, of which * % timed generation, * % warming up, * % building models."])
    path = result.stdout.lines[-2].removeprefix("report: ")
    text = Path(path).read_text()
    assert all(i.removeprefix("tiny/").format(m) in text for i in (DENSE, OURS) for m in (1, 2))
    assert (Path(path).parent / "throughput_latency.png").stat().st_size > 10_000
    assert (Path(path).parent / "throughput_latency.svg").exists()


def test_a_subject_has_one_process_and_pytests_own_has_no_torch(suite, forked):
    """Whatever the number of its cells; dense stays for those that are measured beside it."""
    before = forked.started
    suite()
    assert forked.started - before == 2
    code = "import pytest, sys; pytest.main(['perf', '--perf-seconds=0', '--perf-batches=1', '--perf-methods=dense',"
    code += " '-p', 'slimcore.bench.suite.plugin', '--perf-reports=r']); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "1 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_shorter_outputs_are_told_by_the_longest(suite, pytester):
    """One generate tells of all: fewer runs, the same cells, each its own TTFT, step and peak."""
    suite("--perf-outputs", "2,5,3", "--perf-batches", "1", "--perf-methods", "dense").assert_outcomes(
        passed=3, deselected=3
    )
    assert [b["cell"] for b in lines(pytester, "begun")] == ["tiny/dense/i3-o5/m1/eager-fp32"]
    short, middle, whole = sorted(lines(pytester, "cell"), key=lambda c: c["output_tokens"])
    assert short["ttft_s"] == middle["ttft_s"] == whole["ttft_s"]
    for a, b in ((short, middle), (middle, whole)):
        assert all(x < y for x, y in zip(a["times"]["latency_s"], b["times"]["latency_s"], strict=True))
    assert all(c["peak_bytes"] > 0 and len(c["tpot_s"]) == 3 and min(c["tpot_s"]) > 0 for c in (short, middle, whole))


def test_a_saved_model_is_scored_and_its_perplexity_told(suite, pytester, tokenizer):
    """A folder by path: calibrated on the built-in text, pruned, both perplexities in report and terminal."""
    slimcore.save(tiny(layers=8), pytester.path / "mine", tokenizer=tokenizer)
    result = suite("--perf-models", "./mine", "--perf-batches", "1")
    result.assert_outcomes(passed=2, deselected=1)
    result.stdout.fnmatch_lines(["*perplexity * -> *"])
    dense, ours = lines(pytester, "subject")
    assert ours["plan"]["steps"][0]["scored"]["text"] == "builtin/calibration"
    assert dense["perplexity"]["tokens"]["text"] == "builtin/heldout"
    assert len(set(ours["plan"]["scores"])) == 8
    assert "4,064 predictions on builtin/heldout, windows of 128 tokens, no BOS" in report_text(pytester)


def test_scoring_before_a_cell_shows_its_progress_on_a_terminal(suite, pytester, tokenizer):
    """And in a log there is none of it."""
    slimcore.save(tiny(layers=8), pytester.path / "mine", tokenizer=tokenizer)
    options = ("--perf-models=./mine", "--perf-methods=depth-ppl:2L", "--perf-batches=1")
    command = [sys.executable, "-m", "pytest", "perf", "-v", "--perf-seconds=0", *options, "--perf-reports=shown"]
    shown = on_a_terminal(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "depth-ppl" in shown
    assert "0/8" in shown
    log = suite("-v", *options, "--perf-reports=log")
    assert log.ret == 0
    assert "0/8" not in log.stdout.str() + log.stderr.str()


def test_gpu_cells_without_a_device_fail_in_one_sentence(suite, pytester, monkeypatch):
    """Not zero, nothing written."""
    for module in (plugin, whole_run, options):
        monkeypatch.setattr(module, "has_cuda", lambda: False)
    for asked in (["-m", "gpu"], ["--perf-grid", "figure"]):
        result = suite(*asked)
        assert result.ret != 0
        result.stderr.fnmatch_lines(["ERROR: 0 of 3 cells measured: no CUDA device"])
    assert not (pytester.path / "reports").exists()


def test_out_of_memory_is_a_result_and_the_suite_goes_on(suite, pytester, install):
    """The larger batch is not tried, and says so; another method's cells are measured; the report marks it."""
    install(doubles.out_of_memory, 2)
    suite("--perf-batches", "1,2,4").assert_outcomes(passed=6, deselected=3)
    cells = dict(zip(cell_ids(pytester), lines(pytester, "cell"), strict=True))
    for subject in (DENSE, OURS):
        assert [cells[subject.format(m)]["status"] for m in (1, 2, 4)] == ["ok", "oom", "oom"]
        assert cells[subject.format(4)]["detail"] == "not tried: M2 was out of memory already"
    assert report_text(pytester).count("out of memory") == 4


def test_a_model_that_does_not_fit_is_out_of_memory(suite, pytester, install):
    """Before any cell could run; its cells are results, and each says why."""
    install(doubles.no_room)
    suite().assert_outcomes(passed=4, deselected=3)
    assert [c["status"] for c in lines(pytester, "cell")] == ["oom"] * 4
    assert "the model itself does not fit" in lines(pytester, "cell")[0]["detail"]


def test_where_memory_is_not_given_back_the_next_cell_has_a_new_process(suite, pytester, install, forked):
    """What stayed is told, and no cell after it pays for it."""
    install(doubles.out_of_memory, 2)
    install(doubles.keeps_memory)
    before = forked.started
    suite("--perf-batches", "1,2", "--perf-inputs", "3,4", "--perf-methods", "dense")
    cells = lines(pytester, "cell")
    assert [c["status"] for c in cells] == ["ok", "oom", "ok", "oom"]
    assert "bytes stayed allocated" in cells[1]["detail"]
    assert forked.started - before == 2


def test_a_plan_tells_each_cell_and_measures_nothing(suite, pytester):
    """With or without a GPU: cells, limits, memory, the whole."""
    result = suite("--perf-plan", "-m", "gpu", "--perf-gpu", "l4")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["| tiny/dense/i3-o2/m4/eager-fp16 *", "3 cells of 1 subjects on L4 24GB (*: about *"])
    assert not (pytester.path / "reports").exists()
    suite("--perf-plan").stdout.fnmatch_lines(["4 cells of 2 subjects on this device (*"])


def test_a_budget_leaves_the_rest_to_resume(suite, pytester):
    """One cell at least; going on takes the next ones; nothing is measured twice or called gone."""
    result = suite("--perf-budget", "0.1s")
    assert result.ret == 0
    assert len(lines(pytester, "cell")) == 1
    result.stdout.fnmatch_lines(["1 of 4 cells measured: 1 ok."])
    suite("--perf-budget", "1h", "--perf-resume").stdout.fnmatch_lines(["4 of 4 cells measured: 4 ok (*"])
    assert len(lines(pytester, "cell")) == 4


def test_an_engine_that_is_not_installed_is_skipped_with_its_reason(suite):
    """And no other cell with it."""
    result = suite("--perf-engines", "eager,vllm", "--perf-batches", "1", "-rs")
    result.assert_outcomes(passed=2, skipped=2, deselected=2)
    result.stdout.fnmatch_lines(["SKIPPED * vllm is not installed: pip install vllm*"])


def test_an_error_fails_its_cell_and_no_other(suite, pytester, install, forked):
    """Recorded with its traceback; measured again on resume."""
    install(doubles.raises, ValueError("shape mismatch"), 2)
    result = suite()
    result.assert_outcomes(passed=2, failed=2, deselected=3)
    result.stdout.fnmatch_lines(["*ValueError: shape mismatch*"])
    assert [c["status"] for c in lines(pytester, "cell")] == ["ok", "error", "ok", "error"]
    forked.doubles.clear()
    suite("--perf-resume").assert_outcomes(passed=4, deselected=3)
    assert len(lines(pytester, "cell")) == 6


def test_width_methods_are_measured_with_and_without_multiples(suite, pytester):
    """Shapes are cut without scores; the label tells what is aligned; resuming replays the plan that was found."""
    options = ("--perf-methods", "dense,llm-pruner:0.3local,flap:0.3x8", "--perf-batches", "1")
    suite(*options).assert_outcomes(passed=3, deselected=3)
    dense, pruner, flap = lines(pytester, "subject")
    assert (pruner["label"], flap["label"]) == ("LLM-Pruner", "FLAP x8")
    assert {len(w["channels"]) % 8 for w in flap["plan"]["width"].values()} == {0}
    assert flap["plan"]["width_scores"] == []
    assert flap["costs"]["parameters"] < dense["costs"]["parameters"]
    assert flap["costs"]["parameters"] == flap["plan"]["parameters"]
    suite(*options, "--perf-resume").assert_outcomes(passed=3, deselected=3)


def test_accepting_then_measuring_again_compares(suite, pytester):
    """A second run is judged against the first; a slowed baseline shows as faster, a status as changed."""
    suite(*UPDATE).stdout.fnmatch_lines(["accepted 4 cells as the night *"])
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    data = json.loads(path.read_text())
    for cell in data["cells"].values():
        cell["times"]["latency_s"] = [t * 1000 for t in cell["times"]["latency_s"]]
    data["cells"][OURS.format(2)] = {"status": "oom"}
    data["cells"]["tiny/dense/i3-o2/m9/eager-fp32"] = {"status": "ok", "times": {"latency_s": [1.0]}}
    path.write_text(json.dumps(data))
    result = suite("-v", "--perf-reports", "second")
    result.stdout.fnmatch_lines(
        [
            "1 accepted cells are not in the grid any more: *",
            "  tiny/dense/i3-o2/m9/eager-fp32",
            "Against the baseline of 1 night: 3 faster, 1 status changed.",
            f"- {DENSE.format(1)}: faster, *",
            f"- {OURS.format(2)}: oom -> ok",
            "- FAILED gone",
            "FAILED whole run::gone*",
        ]
    )
    told, _, _ = result.stdout.str().partition("short test summary info")  # where CI is set, pytest repeats it whole
    assert told.count("where that is meant, accept it") == 1


def test_a_cell_that_no_longer_fits_fails(suite, pytester, install):
    """ok -> oom, in the failing test itself."""
    suite(*UPDATE, "--perf-reports", "first")
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    night = json.loads(path.read_text())
    for cell in night["cells"].values():  # so that no other cell's verdict is a matter of the clock
        cell["times"]["latency_s"] = [t * 1000 for t in cell["times"]["latency_s"]]
    path.write_text(json.dumps(night))
    install(doubles.out_of_memory, 2)
    result = suite()
    result.assert_outcomes(passed=2, failed=2, deselected=3)
    result.stdout.fnmatch_lines([f"*{DENSE.format(2)}: ok -> oom*"])
    assert pytester.path.joinpath("reports").exists()


def test_part_of_a_grid_updates_its_own_cells_only(suite, pytester):
    """The others stay as accepted, and are not called gone."""
    suite(*UPDATE, "--perf-reports", "first")
    time.sleep(1)  # a night is named by its second
    result = suite(*REPLACE, "--perf-batches", "2", "--perf-reports", "second")
    assert "not in the grid" not in result.stdout.str()
    first, second = sorted(pytester.path.glob("baselines/*/cpu/*.json"))
    assert list(json.loads(first.read_text())["cells"]) == sorted(i.format(m) for i in (DENSE, OURS) for m in (1, 2))
    assert list(json.loads(second.read_text())["cells"]) == [DENSE.format(2), OURS.format(2)]


def test_where_git_cannot_say_the_commit_a_run_is_not_accepted_as_clean(suite, pytester):
    """There is no repository here: said, not taken for granted."""
    result = suite(*UPDATE[:2], "--perf-allow=inconclusive", "--perf-methods", "dense")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*git cannot say which commit this is*--perf-allow dirty*"])
    assert not list(pytester.path.glob("baselines/*/*/*"))


def test_a_run_with_an_error_is_not_accepted(suite, pytester, install):
    """The exit code says so, and no baseline is written."""
    install(doubles.raises, ValueError("no"), 2)
    result = suite(*UPDATE)
    result.stdout.fnmatch_lines(["2 of 4 cells have no result to accept*", "- FAILED accepting"])
    assert result.ret != 0
    assert not list(pytester.path.glob("baselines/*/*/*"))


def test_resuming_skips_what_is_done_and_survives_a_torn_line(suite, pytester):
    """Lines up to a half-written one are kept; the report has every cell, though less was asked the second time."""
    suite()
    (path,) = pytester.path.glob("reports/*/results.jsonl")
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:40])
    result = suite("--perf-resume", "-k", "depth-ppl")
    result.assert_outcomes(passed=2, deselected=5)
    result.stdout.fnmatch_lines(["4 of 4 cells measured: 4 ok (1 of them by an earlier start of this run)."])
    assert cell_ids(pytester) == [i.format(m) for i in (DENSE, OURS) for m in (1, 2)]
    assert DENSE.format(2).removeprefix("tiny/") in report_text(pytester)


def test_a_run_killed_in_the_middle_is_gone_on_with(suite, pytester):
    """SIGKILL after the first cells: none of them is measured again, and the plan is not scored again."""
    command = [sys.executable, "-m", "pytest", "perf", "--perf-seconds=0", "--perf-outputs", "60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(lines(pytester, "cell")) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = cell_ids(pytester)
    assert 1 <= len(done) < 4
    suite("--perf-resume", "--perf-outputs", "60").assert_outcomes(passed=4, deselected=3)
    ids = cell_ids(pytester)
    assert ids[: len(done)] == done
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perf-grid", "figur"], "*unknown grid 'figur'; did you mean 'figure'? (known: cpu, figure)*"),
        (["--perf-plan", "--perf-gpu", "h10"], "*unknown GPU 'h10'; did you mean 'h100'?*"),
        (["--perf-budget", "soon"], "*argument --perf-budget: invalid*"),
        (["-n", "2", "--perf-plan"], "*--perf-plan measures nothing: run without -n*"),
        (["--perf-detect", "5"], "*argument --perf-detect: invalid*"),
        (["--perf-detect", "0"], "*argument --perf-detect: invalid*"),
        (["--perf-detect=-0.1"], "*argument --perf-detect: invalid*"),
        (["--perf-detect", "nan"], "*argument --perf-detect: invalid*"),
        (["--perf-seconds=-1"], "*argument --perf-seconds: invalid*"),
        (["--perf-seconds", "nan"], "*argument --perf-seconds: invalid*"),
        (["--perf-python", "vllm=absent"], "*argument --perf-python: invalid*"),
        (["--perf-engine-options", "[1]"], "*argument --perf-engine-options: invalid*"),
        (["-n", "2", "--perf-budget", "1m"], "*--perf-budget counts the time of one process*"),
        (
            ["--perf-devices", "auto"],
            "*--perf-devices is for GPUs, and grid 'cpu' is measured on the CPU: leave it out*",
        ),
        (["--perf-devices", "two"], "*argument --perf-devices: invalid choice*"),
        (["-n", "2", "--perf-devices", "auto"], "*--perf-devices gives one process all GPUs: run without -n*"),
        (["--perf-methods", "depth-pppl:0.2"], "*unknown method 'depth-pppl'; did you mean 'depth-ppl'*"),
        (["--perf-batches", "0"], "*argument --perf-batches: invalid*"),
        (["--perf-resume"], "*no run of grid 'cpu' to resume*"),
        (["--perf-resume", "absent"], "*cannot read results of a run*"),
        (["--perf-reports", "perf/grids.toml/x"], "*cannot write reports to*"),
    ],
)
def test_bad_options_are_one_line_and_not_zero(suite, options, message):
    """And nothing is measured."""
    result = suite(*options)
    assert result.ret != 0
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    assert "passed" not in result.stdout.str()
    text = result.stderr.str() + result.stdout.str()
    pytest.LineMatcher(text.splitlines()).fnmatch_lines([message])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "*is not JSON*"), ('{"schema": "other/7"}', "*has schema 'other/7', expected*"),
     ('{"schema": "slimcore.baseline/3", "cells": [1]}', "*.json: *")],
)  # fmt: skip
def test_a_broken_baseline_is_one_line_and_not_zero(suite, pytester, content, message):
    """It is never taken for an absent one."""
    suite(*UPDATE, "--perf-batches", "1")
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    path.write_text(content)
    result = suite()
    assert result.ret != 0
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert path.read_text() == content


def test_a_run_is_gone_on_with_on_as_many_devices(tmp_path):
    """Spread over the GPUs it would be another measurement: refused, as another machine is."""
    grid = Grid("g", "cpu", "fp32", ("eager",), (3,), (2,), (1,), {"tiny": ("dense",)})
    places = Places(tmp_path, tmp_path, tmp_path)
    Session(grid, grid.cells(), places, Protocol(), Machine("cpu")).close()
    with pytest.raises(ResultsError, match="was measured with devices None, this is 'auto'"):
        Session(grid, grid.cells(), places, Protocol(), Machine("cpu", "auto"), Options(resume="latest"))


def test_a_model_that_is_spread_has_the_same_weights_and_never_the_hosts_memory(tmp_path):
    """Shapes and folders; where a GPU was asked for and a layer lies elsewhere, memory ran out."""
    slimcore.save(tiny(), tmp_path / "mine")
    for name in ("tiny", str(tmp_path / "mine")):
        spread, plain = (slimcore.load(name, device=device)[0] for device in ("auto", "cpu"))
        assert all(torch.equal(a, b) for a, b in zip(spread.parameters(), plain.parameters(), strict=True))
        assert torch.equal(spread(ids()).logits, plain(ids()).logits)
    with pytest.raises(torch.OutOfMemoryError, match="some layers are on the host"):
        Built(Cell("tiny", "dense", 3, 2, 1, "eager", "fp32", "cuda"), devices="auto")


def test_a_hung_cell_costs_its_deadline_and_no_other_cell(suite, pytester, install, monkeypatch):
    """Its process is ended; the next cell has a new one."""
    monkeypatch.setattr(lanes, "LEAST", 3.0)
    install(doubles.hangs, 2)
    suite("--perf-methods", "dense", "--perf-inputs", "3,4").assert_outcomes(passed=2, failed=2, deselected=6)
    cells = lines(pytester, "cell")
    assert [c["status"] for c in cells] == ["ok", "error", "ok", "error"]
    assert "gave no sign of life for 3 s, and was ended" in cells[1]["detail"]


def test_a_worker_that_dies_is_an_error_with_its_signal(suite, pytester, install):
    """Of its cell only."""
    install(doubles.dies, 6, 2)
    suite().assert_outcomes(passed=3, failed=1, deselected=3)
    assert "a measuring process ended by signal 9" in lines(pytester, "cell")[-1]["detail"]


def test_a_cell_that_took_the_machine_down_is_tried_once_more(suite, pytester):
    """Where nothing of it was written after two beginnings, it is an error, and not tried for ever."""
    suite()
    (path,) = pytester.path.glob("reports/*/results.jsonl")
    whole = path.read_text().splitlines()
    for _ in range(2):
        path.write_text("\n".join(whole[:-1]) + "\n")  # begun, and the machine went down
        begun = len(lines(pytester, "begun"))
        result = suite("--perf-resume")
        if begun == 4:
            result.assert_outcomes(passed=4, deselected=3)
            whole = path.read_text().splitlines()
            assert json.loads(whole[-2])["kind"] == "begun"
    result.assert_outcomes(passed=3, failed=1, deselected=3)
    assert "down 2 times" in lines(pytester, "cell")[-1]["detail"]


def test_a_run_is_gone_on_with_by_the_same_software_or_never_accepted(suite, pytester):
    """Another commit, dtype's library or thread count is said; insisting makes a run that is no night."""
    suite("--perf-batches", "1", "--perf-methods", "dense")
    (path,) = pytester.path.glob("reports/*/results.jsonl")
    text = path.read_text()
    path.write_text(text.replace(f'"torch":"{torch.__version__}"', '"torch":"1.13"'))
    result = suite("--perf-resume")
    assert result.ret != 0
    result.stderr.fnmatch_lines(
        [f"ERROR: *was measured by other software (torch 1.13 -> {torch.__version__})*--perf-mixed*"]
    )
    result = suite("--perf-resume", "--perf-mixed", *UPDATE)
    result.stdout.fnmatch_lines(["*- FAILED accepting*"])
    assert not list(pytester.path.glob("baselines/*/*/*"))


def test_a_model_with_other_weights_is_not_gone_on_with(suite, pytester, tokenizer):
    """The cells of one run are of one model."""
    slimcore.save(tiny(layers=8), pytester.path / "mine", tokenizer=tokenizer)
    options = ("--perf-models", "./mine", "--perf-methods", "dense")
    suite(*options, "--perf-batches", "1")
    slimcore.save(tiny(layers=8, seed=1), pytester.path / "mine", tokenizer=tokenizer, overwrite=True)
    suite(*options, "--perf-batches", "1,2", "--perf-resume").assert_outcomes(passed=1, failed=1, deselected=2)
    assert "the weights of ./mine are others than when this run began" in lines(pytester, "cell")[-1]["detail"]


def test_two_do_not_write_to_one_run(suite, pytester):
    """The second is refused, in one line."""
    suite("--perf-batches", "1", "--perf-methods", "dense")
    (folder,) = pytester.path.glob("reports/*")
    held = results.resume(folder.parent, folder.name, "cpu")
    result = suite("--perf-resume")
    held.close()
    result.stderr.fnmatch_lines(["ERROR: another process is writing to *"])


def test_collecting_measures_nothing(suite, pytester):
    """--collect-only lists the cells and leaves no run behind."""
    suite("--collect-only", "-q").stdout.fnmatch_lines([f"*{OURS.format(2)}*"])
    in_half = OURS.format(2).replace("fp32", "bf16")
    suite("--collect-only", "-q", "--perf-dtype", "bf16").stdout.fnmatch_lines([f"*{in_half}*"])
    assert not (pytester.path / "reports").exists()


def test_workers_measure_whole_subjects_and_the_controller_concludes(suite, pytester):
    """Each writes its own file; a model is built by one worker; the report has every cell."""
    result = suite("-n", "2")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["4 of 4 cells measured: 4 ok."])
    files = sorted(pytester.path.glob("reports/*/results-gw*.jsonl"))
    assert len(files) == 2
    owners = [
        {json.loads(line)["cell"]["method"] for line in f.read_text().splitlines() if '"kind":"cell"' in line}
        for f in files
    ]
    assert sorted(map(list, owners)) == [["dense"], ["depth-ppl:2L"]]
    assert all(i.removeprefix("tiny/").format(m) in report_text(pytester) for i in (DENSE, OURS) for m in (1, 2))


def test_workers_that_measure_nothing_fail_the_run(suite):
    """Every cell skipped, as its engine is not here: not green."""
    result = suite("-n", "2", "--perf-engines", "vllm", "--perf-batches", "1", "--perf-methods", "dense")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*0 of 1 cells measured: a gate that saw nothing is not green*"])


def test_accepted_cells_that_do_not_run_are_not_green(suite, pytester):
    """Their engine is not installed any more: said, and failed, though all that ran is well."""
    suite(*UPDATE)
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    path.write_text(path.read_text().replace("m2/eager-fp32", "m2/vllm-fp32"))
    result = suite("--perf-engines", "eager,vllm", "--perf-reports", "second")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["2 accepted cells of 8 planned ones were not measured*", "*FAILED not measured*"])


def test_this_version_against_itself(suite, pytester):
    """A/A: two rounds in processes of their own; what differs is counted, never failed, and the noise is told."""
    result = suite("--perf-aa", "2", "--perf-batches", "1", "--perf-methods", "dense")
    assert result.ret == 0
    first, second = lines(pytester, "cell")[-1], lines(pytester, "cell")[0]
    assert {first["round"], second["round"]} == {1, 2}
    assert len(first["against"]["pairs"]["other_s"]) == len(first["times"]["latency_s"]) == 3
    assert "## Noise" in report_text(pytester)
    result.stdout.fnmatch_lines(["The same code against itself: * of 2 comparisons called slower, in * of 2 runs."])


@pytest.mark.parametrize("options", [["--perf-against", "."], ["--perf-aa", "2"]])
def test_versions_in_turn_need_the_machine_for_themselves(suite, options):
    """So they are refused with workers, in one line."""
    result = suite("-n", "2", *options)
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*need the machine for themselves: run without -n*"])


def test_the_report_is_appended_to_the_step_summary(suite, pytester, monkeypatch):
    """Where GitHub gives the file."""
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suite()
    assert summary.read_text() == report_text(pytester)
