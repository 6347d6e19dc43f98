"""Saved measurements: compared, joined, accepted."""

import json

from slimcore.bench.records import results
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
    assert "no cell of the same weights in common: 8 and 4 cells" in err
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
    accept(found(make_run(tmp_path / "before", (1, 8, 16)), tmp_path), Update("first"))
    parts = [
        make_run(tmp_path / str(k), (m,), shard=f"{k}/2", grid_cells=(), factor=0.5 if k == 1 else 0.7, night=2)
        for k, m in ((1, 1), (2, 8))
    ]
    baselines = ("--baselines", tmp_path / "baselines")
    code, out, _ = run("merge", parts[0].folder, parts[1].folder, "--out", tmp_path / "whole", *baselines)
    assert "8 of 8 cells measured: 8 ok." in out
    assert (tmp_path / "whole" / "report.md").exists()
    assert code == 1  # M16 is in no part's grid
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
    assert "| slower" in out
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


def test_a_run_is_the_same_as_itself_whatever_its_grid_was(run, tmp_path):
    """Gone on with for cells of another grid: what it measured is its grid."""
    whole = make_run(tmp_path / "run", (1, 8), grid_cells=("llama-7b/dense/i12-o128/m1/eager-fp16",))
    code, out, _ = run("compare", whole.folder, whole.folder)
    assert code == 0
    assert "8 same" in out


def test_throughput_doubled_is_faster(run, tmp_path):
    """The direction is that of time."""
    old, new = make_run(tmp_path / "old", (1, 8), factor=0.5), make_run(tmp_path / "new", (1, 8), factor=0.25)
    code, out, _ = run("compare", old.folder, new.folder)
    assert code == 0
    assert "4 same, 4 faster" in out


def test_lines_that_cannot_be_read_are_told(run, tmp_path):
    """By report and compare: what they told is lost."""
    torn = make_run(tmp_path / "torn", (1, 8)).folder
    with (torn / results.FILE).open("a") as file:
        file.write('{"kind": "cell", "cel')
    for command in (("compare", torn, torn), ("report", torn, "--baselines", tmp_path / "baselines")):
        code, out, _ = run(*command)
        assert code == 0
        assert "1 of its lines could not be read" in out
        assert f"{results.FILE}, line 12" in out
