"""What only a whole run tells: the machine, all cells together, drift, costs, cells that are not there."""

import math
from dataclasses import replace

import pytest

from slimcore.bench.judge import checks
from slimcore.bench.records import results
from slimcore.bench.records.records import Against, Pairs, Quality
from slimcore.bench.report import writing as report
from slimcore.bench.report.conclusion import Update, accept
from tests.made_up import accepted, change, found, make_run

DENSE, OURS = (("llama-7b", method, "fp16") for method in ("dense", "depth-ppl:9L"))


def failed(run, tmp_path):
    """Names and messages of the whole run's failures."""
    return {check.name: check.message for check in found(run, tmp_path).failures}


def alter(run, key, **fields):
    """Change a subject of a run in memory."""
    run.subjects[key] = replace(run.subjects[key], **fields)


def test_a_slow_machine_is_said_once_and_fails_no_cell(tmp_path):
    """9 % slower by canary and cells alike: one failure, which counts the cells that follow."""
    accepted(tmp_path, 5)
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
    change(slow, factor=1.035)
    assert "8 cells that are not slower by themselves together take 3.5% longer" in failed(slow, tmp_path)["together"]


def test_what_a_gpus_host_explains_is_not_called_a_common_slowdown(tmp_path):
    """All cells 3.5 % slower, launching 3.5 % slower as well: the host is as good a reason as the code."""
    for night, slower in [*((n, 1.0) for n in range(1, 13)), (13, 1.035)]:
        made = make_run(tmp_path / str(night), (1, 8), night=night)
        change(made, factor=slower, host=math.log(3e-3 * slower))
        if night < 13:
            accept(found(made, tmp_path), Update("night"))
    assert "together" not in failed(made, tmp_path)
    change(made, host=math.log(3e-3))
    assert "together" in failed(made, tmp_path)


def test_small_steps_add_up_to_a_drift_from_the_release(tmp_path):
    """0.5 % a night is never slower than the nights before; over 5 % since the pinned release is told."""
    drift = {}
    for night in range(1, 19):
        made = make_run(tmp_path / f"d{night}", (1, 8), night=night)
        change(made, factor=1.005**night)
        findings = found(made, tmp_path)
        assert all(v.passes for v in findings.verdicts.values())
        drift = {c.name: c.message for c in findings.failures}
        accept(findings, Update("night", pin=night == 1, allow=["inconclusive"]))
    assert "8 cells drifted over 5% from the release of 2026-01-01" in drift["drift"]


def test_costs_are_gated_exactly_and_on_any_machine(tmp_path):
    """One parameter more fails, one less is told; a worse perplexity fails, another text is not compared."""
    quality = Quality(20.0, 100, {"text": "t", "bos": False, "tokens_sha256": "a"})
    first = make_run(tmp_path / "1", (1,))
    alter(first, DENSE, perplexity=quality)
    alter(first, OURS, perplexity=quality)
    accept(found(first, tmp_path), Update("first"))
    elsewhere = make_run(tmp_path / "2", (1,), machine="a100", night=2)
    dense, ours = (elsewhere.subjects[key].costs for key in (DENSE, OURS))
    alter(elsewhere, DENSE, costs=replace(dense, parameters=dense.parameters + 1))
    alter(elsewhere, OURS, costs=replace(ours, operator_calls_per_token=0), perplexity=replace(quality, value=20.1))
    names = failed(elsewhere, tmp_path)
    assert "parameters 6,738,415,616 -> 6,738,415,617" in names[f"costs[{'/'.join(DENSE)}]"]
    assert "perplexity 20.0000 -> 20.1000" in names[f"costs[{'/'.join(OURS)}]"]
    assert "operator" not in names[f"costs[{'/'.join(OURS)}]"]
    alter(elsewhere, OURS, perplexity=replace(quality, value=None))
    assert "perplexity 20.0000 -> inf" in failed(elsewhere, tmp_path)[f"costs[{'/'.join(OURS)}]"]
    # The same name, other words: as a text that changes from release to release; or another model.
    other = replace(quality, value=20.1, tokens={**quality.tokens, "tokens_sha256": "b"})
    for what, fields in (
        ("tokens", {"perplexity": other, "weights": "w"}),
        ("weights", {"perplexity": replace(quality, value=20.1), "weights": "x"}),
    ):
        alter(elsewhere, OURS, **fields)
        assert set(failed(elsewhere, tmp_path)) == {f"costs[{'/'.join(DENSE)}]"}
        told = "\n".join(report.standing(found(elsewhere, tmp_path)))
        assert f"perplexity is not compared: it is measured on other {what}" in told


def test_more_operators_are_the_codes_fault_only_with_the_same_libraries(tmp_path):
    """A newer transformers may call more of them: told, not failed."""
    before, after = "torch 2.11.0, transformers 5.17.0", "torch 2.13.0, transformers 5.24.0"
    first, new = make_run(tmp_path / "1", (1,)), make_run(tmp_path / "2", (1,), night=2)
    alter(first, DENSE, counted_by=before)
    accept(found(first, tmp_path), Update("first"))
    more = replace(new.subjects[DENSE].costs, operator_calls_per_token=2)
    alter(new, DENSE, costs=more, counted_by=before)
    assert set(failed(new, tmp_path)) == {f"costs[{'/'.join(DENSE)}]"}
    alter(new, DENSE, counted_by=after)
    assert not failed(new, tmp_path)
    assert f"1 -> 2 ({before} -> {after})" in report.write(found(new, tmp_path)).read_text()


def test_an_accepted_cell_that_a_run_set_out_to_measure_and_did_not_fails(tmp_path):
    """Some are named, all are counted; cells that were never asked for are not missed."""
    accepted(tmp_path, 1)
    part = make_run(tmp_path / "part", (1, 8), night=2)
    gone = [i for i in part.cells if "/m8/" in i]
    for i in gone:
        del part.cells[i]
    message = failed(part, tmp_path)["not measured"]
    assert "4 accepted cells of 8 planned ones were not measured" in message
    assert gone[0] in message
    asked = make_run(tmp_path / "asked", (1,), night=2, grid_cells=tuple(part.planned))
    assert not failed(asked, tmp_path)


def test_a_renamed_cell_fails_and_its_new_name_is_guessed(tmp_path):
    """It does not pass as new."""
    accepted(tmp_path, 1)
    renamed = make_run(tmp_path / "new", (1, 8), night=2)
    text = (renamed.folder / results.FILE).read_text().replace("depth-ppl:9L", "depth-ppl:0.27")
    (renamed.folder / results.FILE).write_text(text)
    message = failed(results.read(renamed.folder), tmp_path)["gone"]
    assert "4 accepted cells are not in the grid any more" in message
    assert "depth-ppl:9L/i12-o128/m8/eager-fp16: renamed to llama-7b/depth-ppl:0.27/i12-o128/m8/eager-fp16?" in message


def test_a_run_that_measured_nothing_is_not_green(tmp_path):
    """All errors, or no line at all."""
    broken = make_run(tmp_path / "new", (1,))
    change(broken, status="error")
    assert "0 of 4 cells measured" in failed(broken, tmp_path)["measured"]
    broken.cells.clear()
    assert "0 of 4 cells measured" in failed(broken, tmp_path)["measured"]


def test_cells_that_share_their_processes_are_not_many_witnesses():
    """All cells of one pair of processes 4 % longer, where such pairs differ by 5 %: nothing is said."""
    assert checks._shared(0.04, math.hypot(0.01, 0.05), 8) is None
    assert checks._shared(0.04, 0.005, 8) is not None


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [("ok", "oom", True), ("oom", "ok", False), ("oom", "oom", True)],
)
def test_a_version_that_alone_ran_out_of_memory_is_judged_and_reported(tmp_path, ours, theirs, passes):
    """Beside cells that both ran; nothing asks for pairs that are not there."""
    beside = make_run(tmp_path / "run", (1, 8), against="main")
    pairs = Pairs((1.0, 1.01, 0.99, 1.0, 1.02, 1.0), (1.0, 1.0, 1.0, 1.01, 1.0, 0.99))
    change(beside, against=Against("ok", pairs=pairs))
    change(beside, lambda one: one.cell.batch == 8, status=ours, against=Against(theirs, "too little memory"))
    findings = found(beside, tmp_path)
    assert not findings.failures
    assert all(v.passes for i, v in findings.verdicts.items() if "/m1/" in i)
    assert all(v.passes == passes for i, v in findings.verdicts.items() if "/m8/" in i)
    assert ours == theirs or f"{theirs} -> {ours}" in report.write(findings).read_text()
