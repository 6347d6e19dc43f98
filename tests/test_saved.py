"""Saved measurements: compared, joined, accepted, shown over nights, and what only a whole run tells."""

import json
import math
import random

import pytest

from slimcore.bench.judge import checks
from slimcore.bench.judge.history import changes
from slimcore.bench.records import results
from slimcore.bench.report import writing as report
from slimcore.bench.report.conclusion import Update, accept
from tests.made_up import found, make_run


def test_two_runs_are_the_same_worse_or_not_to_be_compared(run, tmp_path):
    """0 the same, 0 faster, 1 worse with the cells named, 2 with the reason."""
    old, same = make_run(tmp_path / "old", (1, 8)), make_run(tmp_path / "same", (1, 8), night=2)
    slower, faster = (make_run(tmp_path / f"x{f}", (1, 8), factor=f, night=2) for f in (0.55, 0.4))
    code, out, _ = run("compare", old.folder, same.folder)
    assert code == 0
    assert f"Against {old.folder}: 8 same." in out
    assert run("compare", old.folder, faster.folder)[0] == 0
    code, out, _ = run("compare", old.folder, slower.folder)
    assert code == 1
    assert "4 same, 4 slower" in out
    assert "llama-7b/depth-ppl:9L/i12-o128/m8/eager-fp16: slower, 10.0% longer" in out
    for name, start, reason in (
        ("machine", {"machine": "a100"}, "is of machine 'h100', "),
        ("grid", {"grid": "cpu"}, "is of grid 'gpu', "),
        ("beside", {"against": "main"}, "was measured in turn with main"),
    ):
        other = make_run(tmp_path / name, (1, 8), **start)
        code, out, err = run("compare", old.folder, other.folder)
        assert (code, out) == (2, "")
        assert reason in err
    code, _, err = run("compare", old.folder, make_run(tmp_path / "apart", (16,)).folder)
    assert code == 2
    assert "no cell in common: 8 and 4 cells" in err
    code, _, err = run("compare", old.folder, tmp_path / "absent")
    assert code == 2
    assert "cannot read results of a run" in err


def test_a_cell_that_ran_out_of_memory_is_worse_and_the_reverse_is_not(run, tmp_path):
    """ok to oom exits 1; oom to ok exits 0."""
    fits, lacks = make_run(tmp_path / "fits", (1, 8)), make_run(tmp_path / "lacks", (1, 8), oom_from=8)
    code, out, _ = run("compare", fits.folder, lacks.folder)
    assert code == 1
    assert "llama-7b/dense/i12-o128/m8/eager-fp16: ok -> oom" in out
    assert run("compare", lacks.folder, fits.folder)[0] == 0


def test_nights_are_compared_like_runs(run, tmp_path):
    """A night's file or a folder of nights on the left, a night's file on the right."""
    for night, factor in enumerate((0.5, 0.5, 0.6), 1):
        accept(found(make_run(tmp_path / str(night), (1, 8), factor=factor, night=night), tmp_path, alone=8),
               Update("night", replace=True))  # fmt: skip
    folder = tmp_path / "baselines" / "h100" / "gpu"
    first, second, third = sorted(folder.iterdir())
    assert run("compare", first, second)[0] == 0
    assert run("compare", first, third)[0] == 1
    assert run("compare", folder, tmp_path / "3")[0] == 0  # accepted: its cells start anew there
    assert run("compare", folder, tmp_path / "1")[0] == 0  # faster


def test_parts_are_joined_and_the_whole_is_gated(run, tmp_path):
    """Two shards give the run; one missing, one given twice, or one of another machine is refused, nothing written."""
    accept(found(make_run(tmp_path / "before", (1, 8)), tmp_path), Update("first"))
    parts = [
        make_run(tmp_path / str(k), (m,), shard=f"{k}/2", grid_cells=[], factor=0.5 if k == 1 else 0.7, night=2)
        for k, m in ((1, 1), (2, 8))
    ]
    baselines = ("--baselines", tmp_path / "baselines")
    code, out, _ = run("merge", parts[0].folder, parts[1].folder, "--out", tmp_path / "whole", *baselines)
    assert "8 of 8 cells measured: 8 ok." in out
    assert (tmp_path / "whole" / "report.md").exists()
    assert code == 1  # accepted cells are in no part's grid
    assert "FAILED gone" in out
    # What lies at the place is not ours to replace.
    whole = [part.folder for part in parts]
    assert "is there already: choose another place" in run("merge", *whole, "--out", whole[0], *baselines)[2]
    for given, reason in (
        (["1"], "parts 2/2 of --perf-shard are missing"),
        (["1", "2", "2"], "are in more than one part"),
    ):
        code, _, err = run("merge", *(tmp_path / g for g in given), "--out", tmp_path / "no", *baselines)
        assert code == 2
        assert reason in err
        assert not (tmp_path / "no").exists()
    other = make_run(tmp_path / "other", (16,), machine="a100")
    assert "only parts of one grid on one kind of machine" in run(
        "merge", parts[0].folder, other.folder, "--out", tmp_path / "no", *baselines
    )[2]  # fmt: skip


def test_a_merged_slowdown_is_told_though_no_process_can_measure_it_again(run, tmp_path):
    """A suspect of a saved run is not green: shards were judged where they were measured, the merge judges alone."""
    baselines = ("--baselines", tmp_path / "baselines")
    accept(found(make_run(tmp_path / "before", (1, 8)), tmp_path), Update("first"))
    slow = make_run(tmp_path / "slow", (1, 8), factor=0.6, night=2)
    code, out, _ = run("merge", slow.folder, "--out", tmp_path / "whole", *baselines)
    assert code == 1
    assert "4 same, 4 slower" in out
    code, out, _ = run("report", slow.folder, *baselines)
    assert code == 1
    assert (slow.folder / "report.md").exists()


def test_a_saved_run_is_accepted_later(run, tmp_path):
    """As with --perf-update: the night is written; what moved is refused, unless it is to start anew."""
    baselines = ("--baselines", tmp_path / "baselines")
    first, moved = make_run(tmp_path / "1", (1,)), make_run(tmp_path / "2", (1,), factor=0.7, night=2)
    assert run("accept", first.folder, "--reason", "first", *baselines)[0] == 0
    code, _, err = run("accept", moved.folder, "--reason", "slower", *baselines)
    assert code == 2
    assert "2 cells or costs moved" in err
    code, out, _ = run("accept", moved.folder, "--reason", "slower", "--replace", *baselines)
    assert code == 0
    assert "| slower |" in out
    assert len(list((tmp_path / "baselines" / "h100" / "gpu").iterdir())) == 2


def test_a_run_is_not_judged_by_itself_and_is_one_night_however_often_it_is_gone_on_with(run, tmp_path):
    """Accepted, gone on with a day later, accepted again."""
    baselines = ("--baselines", tmp_path / "baselines")
    whole = make_run(tmp_path / "run", (1, 8))
    lines = (whole.folder / "results.jsonl").read_text().splitlines(keepends=True)
    head, more = lines[0], [line for line in lines if '"kind":"cell"' in line and "/m8/" in line]
    part = [line for line in lines if line not in more]
    (whole.folder / "results.jsonl").write_text("".join(part))
    assert run("accept", whole.folder, "--reason", "half", "--allow", "missing", *baselines)[0] == 0
    later = head.replace("2026-01-01", "2026-01-02")
    (whole.folder / "results.jsonl").write_text("".join([*part, later, *more]))
    code, out, _ = run("report", whole.folder, *baselines)
    assert code == 0
    assert "This run is the only accepted night of its machine and grid" in out
    assert run("accept", whole.folder, "--reason", "whole", *baselines)[::2] == (0, "")
    (night,) = (tmp_path / "baselines" / "h100" / "gpu").iterdir()
    assert night.name == "2026-01-01T00-00-00.json"
    assert len(json.loads(night.read_text())["cells"]) == 8
    other = make_run(tmp_path / "other", (1, 8), night=3)
    assert "Against the baseline of 1 night: 8 same." in run("report", other.folder, *baselines)[1]


def test_history_marks_where_a_cell_changed(run, tmp_path):
    """A table of the nights, the step where it happened, and a picture; several baselines ask which."""
    steps = [0.5] * 6 + [0.56] * 6
    for night, factor in enumerate(steps, 1):
        made = make_run(tmp_path / str(night), (1,), factor=factor * (1 + 0.002 * (night % 3)), night=night,
                        canary=1 + 0.01 * (night % 2))  # fmt: skip
        accept(found(made, tmp_path, alone=4), Update(f"night {night}", replace=True))
    baselines = ("--baselines", tmp_path / "baselines")
    code, out, _ = run("history", "llama-7b/depth*/i12*", *baselines, "--out", tmp_path / "drawn")
    assert code == 0
    (row,) = [line for line in out.splitlines() if "+1" in line]
    assert "2026-01-07" in row
    assert "night 7" in row
    assert (tmp_path / "drawn" / "history.png").stat().st_size > 10_000
    code, out, _ = run("history", *baselines, "--out", tmp_path / "all")
    assert out.count("2026-01-07 +1") == 2
    code, _, err = run("history", "llama-7b/depth", *baselines)
    assert code == 2
    assert "unknown cell 'llama-7b/depth'" in err
    assert run("history", "--baselines", tmp_path / "absent")[0] == 2


def test_change_points_are_found_and_not_made_up():
    """No step in 30 steady nights, the one that is there to within a night, whatever the seed."""
    for seed in range(20):
        rng = random.Random(seed)
        steady = [rng.gauss(0, 0.008) for _ in range(30)]
        assert changes(steady, 0.008) == []
        (at,) = changes([x + (0.05 if n >= 17 else 0) for n, x in enumerate(steady)], 0.008)
        assert abs(at - 17) <= 1


def failed(run, tmp_path):
    """Names and messages of the whole run's failures."""
    return {check.name: check.message for check in found(run, tmp_path).failures}


def accepted(tmp_path, count=5, **options):
    """So many nights of the same run."""
    for night in range(1, count + 1):
        update = Update("release", pin=night == 1)
        accept(found(make_run(tmp_path / f"n{night}", (1, 8), night=night, **options), tmp_path), update)


def test_a_slow_machine_is_said_once_and_fails_no_cell(tmp_path):
    """9 % slower by canary and cells alike: one failure, which counts the cells that follow."""
    accepted(tmp_path)
    findings = found(make_run(tmp_path / "new", (1, 8), night=9, canary=1.09), tmp_path)
    assert {v.verdict for v in findings.verdicts.values()} == {"same"}
    (check,) = findings.failures
    assert check.name == "machine"
    assert "the machine is 9% slower" in check.message
    assert "8 cells follow it, 0 do not" in check.message


def test_a_slowdown_that_all_cells_share_and_the_canary_does_not_fails(tmp_path):
    """Too small to see in one cell."""
    accepted(tmp_path, 12)
    slow = make_run(tmp_path / "new", (1, 8), night=13)
    for cell in slow.cells.values():
        cell["latency_s"] = [t * 1.035 for t in cell["latency_s"]]
    assert "8 cells that are not slower by themselves together take 3.5% longer" in failed(slow, tmp_path)["together"]


def test_what_a_gpus_host_explains_is_not_called_a_common_slowdown(tmp_path):
    """All cells 3.5 % slower, launching 3.5 % slower as well: the host is as good a reason as the code."""
    for night, slower in [*((n, 1.0) for n in range(1, 13)), (13, 1.035)]:
        made = make_run(tmp_path / str(night), (1, 8), night=night)
        for cell in made.cells.values():
            cell["latency_s"] = [t * slower for t in cell["latency_s"]]
            cell["host"] = math.log(3e-3 * slower)
        if night < 13:
            accept(found(made, tmp_path), Update("night"))
    assert "together" not in failed(made, tmp_path)
    for cell in made.cells.values():
        cell["host"] = math.log(3e-3)
    assert "together" in failed(made, tmp_path)


def test_small_steps_add_up_to_a_drift_from_the_release(tmp_path):
    """0.5 % a night is never slower than the nights before; over 5 % since the pinned release is told."""
    drift = {}
    for night in range(1, 19):
        made = make_run(tmp_path / f"d{night}", (1, 8), night=night)
        for cell in made.cells.values():
            cell["latency_s"] = [t * 1.005**night for t in cell["latency_s"]]
        findings = found(made, tmp_path)
        assert all(v.passes for v in findings.verdicts.values())
        drift = {c.name: c.message for c in findings.failures}
        accept(findings, Update("night", pin=night == 1, allow=["inconclusive"]))
    assert "8 cells drifted over 5% from the release of 2026-01-01" in drift["drift"]


def test_costs_are_gated_exactly_and_on_any_machine(tmp_path):
    """One parameter more fails, one less is told; a worse perplexity fails, another text is not compared."""
    quality = {"value": 20.0, "predictions": 100, "tokens": {"text": "t", "bos": False, "tokens_sha256": "a"}}
    first = make_run(tmp_path / "1", (1,))
    for subject in first.subjects.values():
        subject["perplexity"] = quality
    accept(found(first, tmp_path), Update("first"))
    elsewhere = make_run(tmp_path / "2", (1,), machine="a100", night=2)
    dense, ours = elsewhere.subjects.values()
    dense["footprint"] |= {"parameters": dense["footprint"]["parameters"] + 1}
    ours["footprint"] |= {"operator_calls_per_token": 0}
    ours["perplexity"] = quality | {"value": 20.1}
    names = failed(elsewhere, tmp_path)
    assert "parameters 6,738,415,616 -> 6,738,415,617" in names["costs[llama-7b/dense]"]
    assert "perplexity 20.0000 -> 20.1000" in names["costs[llama-7b/depth-ppl:9L]"]
    assert "operator" not in names["costs[llama-7b/depth-ppl:9L]"]
    # The same name, other words: as a text that changes from release to release.
    ours["perplexity"]["tokens"] = quality["tokens"] | {"tokens_sha256": "b"}
    assert set(failed(elsewhere, tmp_path)) == {"costs[llama-7b/dense]"}
    told = "\n".join(report.standing(found(elsewhere, tmp_path)))
    assert "perplexity is not compared: it is measured on other tokens" in told


def test_more_operators_are_the_codes_fault_only_with_the_same_libraries(tmp_path):
    """A newer transformers may call more of them: told, not failed."""
    first, new = make_run(tmp_path / "1", (1,)), make_run(tmp_path / "2", (1,), night=2)
    for subject in first.subjects.values():
        subject["counted_by"] = "torch 2.11.0, transformers 5.17.0"
    accept(found(first, tmp_path), Update("first"))
    dense, _ = new.subjects.values()
    dense |= {
        "footprint": dense["footprint"] | {"operator_calls_per_token": 2},
        "counted_by": "torch 2.11.0, transformers 5.17.0",
    }
    assert set(failed(new, tmp_path)) == {"costs[llama-7b/dense]"}
    dense["counted_by"] = "torch 2.13.0, transformers 5.24.0"
    assert not failed(new, tmp_path)
    text = report.write(found(new, tmp_path)).read_text()
    assert "1 -> 2 (torch 2.11.0, transformers 5.17.0 -> torch 2.13.0, transformers 5.24.0)" in text


def test_a_renamed_cell_fails_and_its_new_name_is_guessed(tmp_path):
    """It does not pass as new."""
    accepted(tmp_path, 1)
    renamed = make_run(tmp_path / "new", (1, 8), night=2)
    text = (renamed.folder / results.FILE).read_text().replace("depth-ppl:9L/", "depth-ppl:0.27/")
    (renamed.folder / results.FILE).write_text(text)
    message = failed(results.read(renamed.folder), tmp_path)["gone"]
    assert "4 accepted cells are not in the grid any more" in message
    assert "depth-ppl:9L/i12-o128/m8/eager-fp16: renamed to llama-7b/depth-ppl:0.27/i12-o128/m8/eager-fp16?" in message


def test_a_run_that_measured_nothing_is_not_green(tmp_path):
    """All errors, or no line at all."""
    broken = make_run(tmp_path / "new", (1,))
    for cell in broken.cells.values():
        cell["status"] = "error"
    assert "0 of 4 cells measured" in failed(broken, tmp_path)["measured"]
    broken.cells.clear()
    assert "0 of 4 cells measured" in failed(broken, tmp_path)["measured"]


def test_another_machines_baseline_is_not_compared_with(run, tmp_path):
    """It is named; nothing is judged; a file that was copied over is refused."""
    accepted(tmp_path, 1)
    other = make_run(tmp_path / "new", (1, 8), machine="a100", factor=5.0)
    code, out, _ = run("report", other.folder, "--baselines", tmp_path / "baselines")
    assert code == 0
    assert "other machines have one, with which nothing here is compared: h100" in out
    copied = tmp_path / "baselines" / "a100" / "gpu"
    copied.mkdir(parents=True)
    (night,) = (tmp_path / "baselines" / "h100" / "gpu").iterdir()
    (copied / night.name).write_bytes(night.read_bytes())
    code, _, err = run("report", other.folder, "--baselines", tmp_path / "baselines")
    assert code == 2
    assert "times of two machines are never compared" in err


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan, math.inf, "fast", None, True])
def test_a_night_edited_to_nonsense_is_refused(run, tmp_path, bad):
    """Never taken for a measurement."""
    accepted(tmp_path, 1)
    (night,) = (tmp_path / "baselines" / "h100" / "gpu").iterdir()
    data = json.loads(night.read_text())
    next(iter(data["cells"].values()))["latency_s"] = [1.0, bad]
    night.write_text(json.dumps(data))
    code, _, err = run("report", make_run(tmp_path / "new", (1, 8)).folder, "--baselines", tmp_path / "baselines")
    assert code == 2
    assert "expected positive seconds" in err


def test_throughput_doubled_is_faster(run, tmp_path):
    """The direction is that of time."""
    old, new = make_run(tmp_path / "old", (1, 8), factor=0.5), make_run(tmp_path / "new", (1, 8), factor=0.25)
    code, out, _ = run("compare", old.folder, new.folder)
    assert code == 0
    assert "4 same, 4 faster" in out


def test_cells_that_share_their_processes_are_not_many_witnesses():
    """All cells of one pair of processes 4 % longer, where such pairs differ by 5 %: nothing is said."""
    assert checks._shared(0.04, math.hypot(0.01, 0.05), 8) is None
    assert checks._shared(0.04, 0.005, 8) is not None
