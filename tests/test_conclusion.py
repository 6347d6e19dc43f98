"""What a run comes to: accepted or refused, told in a page that GitHub shows, failures of one cause once."""

import re
from dataclasses import replace

import pytest

from slimcore.bench.records.records import Against
from slimcore.bench.report import step_summary
from slimcore.bench.report import writing as report
from slimcore.bench.report.conclusion import Update, accept
from slimcore.errors import ResultsError
from tests.made_up import change, found, make_run

TRACEBACK = """Traceback (most recent call last):
  File "slimcore/bench/timing.py", line {}, in measure
    raise RuntimeError(
    ...<2 lines>...
    )
RuntimeError: CUDA error: an illegal memory access was encountered
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""


def first(one):
    """Whether a cell is that of dense at M1 and 12 tokens."""
    return one.id == "llama-7b/dense/i12-o128/m1/eager-fp16"


def nights(tmp_path):
    """The files of the accepted nights."""
    return sorted((tmp_path / "baselines" / "h100" / "gpu").glob("*.json"))


def two(tmp_path, **options):
    """An accepted run, and another of the next night."""
    accept(found(make_run(tmp_path / "first", (1, 8)), tmp_path), Update("first"))
    return make_run(tmp_path / "second", (1, 8), night=2, **options)


def test_a_nightly_grows_though_one_cell_got_faster(tmp_path):
    """The cell is left out, and said to be; it stays judged by its earlier nights. Without leave all is refused."""
    run = two(tmp_path)
    change(run, first, factor=0.5)
    with pytest.raises(ResultsError, match=r"1 cells or costs moved .*; --perf-allow moved leaves them out$"):
        accept(found(run, tmp_path), Update("second"))
    told = accept(found(run, tmp_path), Update("second", allow=["moved"]))
    assert [[v.strip() for v in row.split("|")][1:-1] for row in told if "/m1/" in row] == [
        ["llama-7b/dense/i12-o128/m1/eager-fp16", "2.621", "1.311", "faster, left out"]
    ]
    assert re.match(r"accepted 7 cells as the night .*; what moved is left out", told[-1])
    third = found(make_run(tmp_path / "third", (1, 8), night=3), tmp_path)
    counts = {cell: len(known.nights) for cell, known in third.baseline.references.items()}
    assert sorted(counts.values()) == [1] + [2] * 7


def test_what_fits_now_is_left_out_and_what_got_worse_is_refused(tmp_path):
    """Leave to leave out what moved is none to accept what is slower, or does not fit any more."""
    accept(found(make_run(tmp_path / "first", (1, 8), oom_from=8), tmp_path), Update("first"))
    fits = found(make_run(tmp_path / "fits", (1, 8), night=2), tmp_path)
    assert "accepted 6 cells" in accept(fits, Update("fits", allow=["moved"]))[-1]
    all_moved = make_run(tmp_path / "all", (1, 8), night=3)
    change(all_moved, factor=0.2)
    with pytest.raises(ResultsError, match="0 of 8 cells are left to accept"):
        accept(found(all_moved, tmp_path), Update("all", allow=["moved"]))
    lost = make_run(tmp_path / "lost", (1, 8), night=3, oom_from=1)
    with pytest.raises(ResultsError, match=r"cells or costs moved .*starts it anew$"):
        accept(found(lost, tmp_path), Update("lost", allow=["moved"]))
    slow = found(make_run(tmp_path / "slow", (1, 8), night=3, factor=1.5), tmp_path, alone=8)
    with pytest.raises(ResultsError, match="4 cells or costs moved"):
        accept(slow, Update("slow", allow=["moved"]))


@pytest.mark.parametrize(
    ("start", "update", "error"),
    [
        ({}, Update(None), "needs --perf-reason TEXT"),
        ({}, Update("x", allow=["everything"]), "'everything' is none of dirty, missing, inconclusive, moved"),
        ({"against": "main"}, Update("x"), "with --perf-against or --perf-aa has no baseline"),
        ({"mixed": True}, Update("x", allow=["dirty", "missing", "inconclusive", "moved"]), "it is no night of either"),
        ({"software": {"dirty": True}}, Update("x"), "changes that no commit holds; or .* --perf-allow dirty"),
    ],
)
def test_what_must_not_be_accepted_is_refused(tmp_path, start, update, error):
    """With the reason and what to do; no night is written."""
    with pytest.raises(ResultsError, match=error):
        accept(found(make_run(tmp_path / "run", (1,), **start), tmp_path), update)
    assert not nights(tmp_path)


def test_the_command_prints_what_changes_or_refuses(run, tmp_path):
    """Exit 0 and the difference alone on stdout; exit 2, nothing on stdout, and a line on stderr."""
    made = two(tmp_path, factor=0.25)
    options = ("--reason", "faster", "--baselines", tmp_path / "baselines")
    code, out, err = run("accept", made.folder, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: 4 cells or costs moved (llama-7b/depth-ppl:9L/i12-o128/m1/eager-fp16, ")
    assert len(err.splitlines()) == 1
    code, out, err = run("accept", made.folder, *options, "--allow", "moved")
    assert (code, err) == (0, "")
    assert out.startswith("| cell ")
    assert out.count(" faster, left out |") == 4
    assert out.splitlines()[-1].startswith("accepted 4 cells as the night ")
    assert len(nights(tmp_path)) == 2


def test_cells_that_fail_for_one_cause_are_told_once(tmp_path):
    """With the cause, the number and the first of them; with a baseline or without; a lone one has its traceback."""
    run = make_run(tmp_path / "run", range(1, 33))
    for number, (i, one) in enumerate(run.cells.items()):
        run.cells[i] = replace(one, status="error", detail=TRACEBACK.format(number))
    text = report.write(found(run, tmp_path)).read_text()
    assert text.count("illegal memory access") == 1
    assert "- 128 cells failed alike: RuntimeError: CUDA error: an illegal memory access" in text
    assert "They are llama-7b/dense/i12-o128/m1/eager-fp16, llama-7b/dense/i12-o128/m2/eager-fp16, " in text
    assert len(text.encode()) < 60_000
    after = two(tmp_path)
    change(after, first, status="error", detail=TRACEBACK.format(7))
    text = report.write(found(after, tmp_path)).read_text()
    assert "/m1/eager-fp16: ok -> error\n  Traceback" in text
    assert "line 7, in measure" in text
    change(after, against=Against("error", TRACEBACK.format(8)))
    lines = report.standing(found(after, tmp_path))
    assert any(re.match(r"- 7 cells failed alike: Runtime(.|\n)*in the other version", line) for line in lines)


def test_a_summary_is_no_larger_than_github_shows(tmp_path, monkeypatch):
    """Cut at a line, with the place of the whole; never the same twice; a step that wrote before leaves less room."""
    summary, path = tmp_path / "summary.md", tmp_path / "report.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    path.write_text("short ü\n")
    for _ in range(2):
        step_summary.append(path)
        assert summary.read_text() == "short ü\n"
    path.write_text("".join(f"| line {n} | ü |\n" for n in range(100_000)))
    step_summary.append(path)
    lines = summary.read_text().splitlines()
    assert 899_000 < summary.stat().st_size <= step_summary.ROOM
    assert re.fullmatch(r"\| line \d+ \| ü \|", lines[-3])
    assert (
        lines[-1] == f"Cut here: this report has {path.stat().st_size:,} bytes, GitHub shows 900,000. All is in {path}"
    )
    for name, value in (("SERVER_URL", "https://github.com"), ("REPOSITORY", "a/b"), ("RUN_ID", "17")):
        monkeypatch.setenv(f"GITHUB_{name}", value)
    summary.unlink()
    for _ in range(2):
        step_summary.append(path)
    assert summary.read_text().endswith("/report.md, of https://github.com/a/b/actions/runs/17\n")
    assert summary.read_text().count("Cut here") == 1
