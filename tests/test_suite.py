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
from slimcore.bench.grid.cells import Cell, Grid
from slimcore.bench.measure import engines
from slimcore.bench.measure.subject import Subjects
from slimcore.bench.measure.timing import Protocol
from slimcore.bench.report.conclusion import Update, conclude, find
from slimcore.bench.suite.remote import HERE, Remote
from slimcore.bench.suite.session import Options, Places, Session
from slimcore.errors import ResultsError
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
UPDATE = ("--perf-update", "--perf-reason=test", "--perf-allow=inconclusive")
REPLACE = ("--perf-update=replace", *UPDATE[1:])
DENSE = "tiny/dense/i3-o2/m{}/eager-fp32"
OURS = "tiny/depth-ppl:2L/i3-o2/m{}/eager-fp32"


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory, tokenizer):
    """Go the whole road once: pytester forgets modules first imported inside of it, and torch minds coming twice."""
    root = tmp_path_factory.mktemp("whole-road")
    folder = slimcore.save(tiny(layers=8), root / "mine", tokenizer=tokenizer)
    grid = Grid("g", "cpu", "fp32", ("eager",), (3,), (2,), (1,), {str(folder): ("dense", "depth-ppl:2L")})
    session = Session(grid, grid.cells(), Places(root, root, root), Protocol(seconds=0))
    for cell in grid.cells():
        assert session.measure(cell).passes
    session.close()
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


@pytest.fixture
def broken_engine(monkeypatch):
    """Make the eager engine raise `error` for batches of `batch` and more."""

    def break_(error, batch):
        def engine(model, ids, new, *, sample=False):
            if ids.shape[0] >= batch:
                raise error
            return engines.eager(model, ids, new, sample=sample)

        monkeypatch.setitem(engines.ENGINES, "eager", engine)

    return break_


def lines(pytester, kind, run="*"):
    """Records of one kind, over all runs, in order."""
    text = "".join(p.read_text() for p in sorted(pytester.path.glob(f"reports/{run}/results.jsonl")))
    return [r for r in map(json.loads, text.splitlines()) if r["kind"] == kind]


def report_text(pytester):
    """The text of the one report."""
    (path,) = pytester.path.glob("reports/*/report.md")
    return path.read_text()


def test_a_run_measures_every_cell_and_writes_its_report_last(suite, pytester):
    """Ids in the output, one line a cell, models loaded once for dense and the method after it, the path at the end."""
    result = suite("-v")
    result.assert_outcomes(passed=4, deselected=3)
    result.stdout.fnmatch_lines([f"*[[]{DENSE.format(1)}[]]* s, * tokens/s, no baseline*"])
    assert [c["id"] for c in lines(pytester, "cell")] == [i.format(m) for i in (DENSE, OURS) for m in (1, 2)]
    assert all(len(c["latency_s"]) == 3 and c["status"] == "ok" for c in lines(pytester, "cell"))
    assert [s["footprint"]["layers"] for s in lines(pytester, "subject")] == [8, 6]
    result.stdout.fnmatch_lines(["* s, of which * % timed generation, * % warming up, * % building models."])
    path = result.stdout.lines[-2].removeprefix("report: ")
    text = Path(path).read_text()
    assert all(i.removeprefix("tiny/").format(m) in text for i in (DENSE, OURS) for m in (1, 2))
    assert (Path(path).parent / "throughput_latency.png").stat().st_size > 10_000
    assert (Path(path).parent / "throughput_latency.svg").exists()


def test_a_model_is_loaded_once_for_dense_and_its_pruned_form(suite, monkeypatch):
    """And scored once, whatever the number of cells."""
    loads = []
    plain = Subjects._dense
    monkeypatch.setattr(Subjects, "_dense", lambda self, cell: (plain(self, cell), loads.append(self.loads))[0])
    suite()
    assert loads == [1, 1]


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


@pytest.mark.usefixtures("suite")
def test_scoring_before_a_cell_shows_its_progress_on_a_terminal(pytester, tokenizer):
    """And in a log there is none of it."""
    slimcore.save(tiny(layers=8), pytester.path / "mine", tokenizer=tokenizer)
    options = ["perf", "-v", "--perf-seconds=0", "--perf-models=./mine", "--perf-batches=1", "--perf-reports"]
    command = [sys.executable, "-m", "pytest", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = on_a_terminal([*command, "shown"], env=environment)
    assert "depth-ppl" in shown
    assert "0/8" in shown
    log = subprocess.run([*command, "log"], env=environment, capture_output=True, text=True, check=True)
    assert "0/8" not in log.stdout + log.stderr


def test_gpu_cells_without_a_device_fail_in_one_sentence(suite, pytester, monkeypatch):
    """Not zero, nothing written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options in (["-m", "gpu"], ["--perf-grid", "figure"]):
        result = suite(*options)
        assert result.ret != 0
        result.stderr.fnmatch_lines(["ERROR: 0 of 3 cells measured: no CUDA device"])
    assert not (pytester.path / "reports").exists()


def test_out_of_memory_is_a_result_and_the_suite_goes_on(suite, pytester, broken_engine):
    """The larger batch is not tried, and says so; another method's cells are measured; the report marks it."""
    broken_engine(torch.OutOfMemoryError("CUDA out of memory"), 2)
    suite("--perf-batches", "1,2,4").assert_outcomes(passed=6, deselected=3)
    cells = {c["id"]: c for c in lines(pytester, "cell")}
    for subject in (DENSE, OURS):
        assert [cells[subject.format(m)]["status"] for m in (1, 2, 4)] == ["ok", "oom", "oom"]
        assert cells[subject.format(4)]["detail"] == "not tried: M2 was out of memory already"
    assert report_text(pytester).count("out of memory") == 4


def test_a_model_that_does_not_fit_is_out_of_memory(suite, pytester, monkeypatch):
    """Before any cell could run; its cells are results, and each says why."""

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("slimcore.bench.measure.subject.load", refuse)
    suite().assert_outcomes(passed=4, deselected=3)
    assert [c["status"] for c in lines(pytester, "cell")] == ["oom"] * 4
    assert "the model itself does not fit" in lines(pytester, "cell")[0]["detail"]


def test_where_memory_is_not_given_back_the_next_cells_run_in_fresh_processes(suite, pytester, monkeypatch):
    """What leaked is told; the cells after it are measured all the same."""
    leaked = iter([0, 0, 10**9])
    monkeypatch.setattr("slimcore.bench.measure.timing.allocated", lambda device: next(leaked, 10**9))
    monkeypatch.setattr("slimcore.bench.suite.alone.allocated", lambda device: 10**9)

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("slimcore.bench.measure.timing._measure", refuse)
    suite("--perf-batches", "1", "--perf-inputs", "3,4").assert_outcomes(passed=4, deselected=2)
    first, *rest = lines(pytester, "cell")
    assert first["status"] == "oom"
    assert "bytes stayed allocated" in first["detail"]
    assert [c["status"] for c in rest] == ["ok"] * 3
    assert [s["method"] for s in lines(pytester, "subject")] == ["dense", "depth-ppl:2L"]


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
    result.stdout.fnmatch_lines(["SKIPPED * vllm is not installed: pip install vllm"])


def test_an_error_fails_its_cell_and_no_other(suite, pytester, broken_engine):
    """Recorded with its traceback; measured again on resume."""
    broken_engine(ValueError("shape mismatch"), 2)
    result = suite()
    result.assert_outcomes(passed=2, failed=2, deselected=3)
    result.stdout.fnmatch_lines(["*ValueError: shape mismatch*"])
    assert [c["status"] for c in lines(pytester, "cell")] == ["ok", "error", "ok", "error"]
    engines.ENGINES["eager"] = engines.eager
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
    assert flap["footprint"]["parameters"] < dense["footprint"]["parameters"]
    assert flap["footprint"]["parameters"] == flap["plan"]["parameters"]
    suite(*options, "--perf-resume").assert_outcomes(passed=3, deselected=3)


def test_accepting_then_measuring_again_compares(suite, pytester):
    """A second run is judged against the first; a slowed baseline shows as faster, a status as changed."""
    suite(*UPDATE).stdout.fnmatch_lines(["accepted 4 cells as the night *"])
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    data = json.loads(path.read_text())
    for cell in data["cells"].values():
        cell["latency_s"] = [t * 1000 for t in cell["latency_s"]]
    data["cells"][OURS.format(2)] = {"status": "oom", "latency_s": []}
    data["cells"]["tiny/dense/i3-o2/m9/eager-fp32"] = {"status": "ok", "latency_s": [1.0]}
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


def test_a_cell_that_no_longer_fits_fails(suite, pytester, broken_engine):
    """ok -> oom, in the failing test itself."""
    suite(*UPDATE, "--perf-reports", "first")
    (path,) = pytester.path.glob("baselines/*/cpu/*.json")
    night = json.loads(path.read_text())
    for cell in night["cells"].values():  # so that no other cell's verdict is a matter of the clock
        cell["latency_s"] = [t * 1000 for t in cell["latency_s"]]
    path.write_text(json.dumps(night))
    broken_engine(torch.OutOfMemoryError("CUDA out of memory"), 2)
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


def test_a_run_with_an_error_is_not_accepted(suite, pytester, broken_engine):
    """The exit code says so, and no baseline is written."""
    broken_engine(ValueError("no"), 2)
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
    ids = [c["id"] for c in lines(pytester, "cell")]
    assert ids == [i.format(m) for i in (DENSE, OURS) for m in (1, 2)]
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
    done = [c["id"] for c in lines(pytester, "cell")]
    assert 1 <= len(done) < 4
    suite("--perf-resume", "--perf-outputs", "60").assert_outcomes(passed=4, deselected=3)
    ids = [c["id"] for c in lines(pytester, "cell")]
    assert ids[: len(done)] == done
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perf-grid", "figur"], "*unknown grid 'figur'; did you mean 'figure'? (known: cpu, figure)*"),
        (["--perf-plan", "--perf-gpu", "h10"], "*unknown GPU 'h10'; did you mean 'h100'?*"),
        (["--perf-budget", "soon"], "*argument --perf-budget: invalid*"),
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
     ('{"schema": "slimcore.baseline/2", "cells": [1]}', "*has no cells with a status*")],
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
    Session(grid, grid.cells(), places, Protocol()).close()
    with pytest.raises(ResultsError, match="was measured with devices None, this is 'auto'"):
        Session(grid, grid.cells(), places, Protocol(), Options(resume="latest", devices="auto"))


def test_a_model_that_is_spread_has_the_same_weights_and_never_the_hosts_memory(tmp_path):
    """Shapes and folders; where a GPU was asked for and a layer lies elsewhere, memory ran out."""
    slimcore.save(tiny(), tmp_path / "mine")
    for name in ("tiny", str(tmp_path / "mine")):
        spread, plain = (slimcore.load(name, device=device)[0] for device in ("auto", "cpu"))
        assert all(torch.equal(a, b) for a, b in zip(spread.parameters(), plain.parameters(), strict=True))
        assert torch.equal(spread(ids()).logits, plain(ids()).logits)
    with pytest.raises(torch.OutOfMemoryError, match="some layers are on the host"):
        Subjects(devices="auto").get(Cell("tiny", "dense", 3, 2, 1, "eager", "fp32", "cuda"))


def test_a_process_that_cannot_spread_a_model_is_refused(monkeypatch):
    """Another version may know nothing of --perf-devices; this one does."""
    with Remote(HERE, "auto"):
        pass
    process = Remote(HERE)
    monkeypatch.setattr(process, "_devices", "auto")
    with pytest.raises(ResultsError, match="cannot spread a model: leave --perf-devices out"), process:
        pass


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
        {json.loads(line)["method"] for line in f.read_text().splitlines() if '"kind":"cell"' in line} for f in files
    ]
    assert sorted(map(list, owners)) == [["dense"], ["depth-ppl:2L"]]
    assert all(i.removeprefix("tiny/").format(m) in report_text(pytester) for i in (DENSE, OURS) for m in (1, 2))


def test_this_version_against_itself(suite, pytester):
    """A/A: two rounds in processes of their own; what differs is counted, never failed, and the noise is told."""
    result = suite("--perf-aa", "2", "--perf-batches", "1", "--perf-methods", "dense")
    assert result.ret == 0
    first, second = lines(pytester, "cell")[-1], lines(pytester, "cell")[0]
    assert {first["round"], second["round"]} == {1, 2}
    assert len(first["against_s"]) == len(first["latency_s"]) == 3
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
