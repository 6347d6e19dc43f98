"""The report and its figure, from results made up: two points or eight, one model or two, memory running out."""

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from slimcore.bench.markdown import tabulated
from slimcore.bench.records import results
from slimcore.bench.records.records import SCHEMA, Pairs
from slimcore.bench.report import figures, story
from slimcore.bench.report import writing as report
from slimcore.bench.report.conclusion import Update, accept
from slimcore.errors import ResultsError
from tests.made_up import change, found, make_run


def dense(one):
    """Whether a cell is of the dense model."""
    return one.cell.method == "dense"


def ours(one):
    """Whether it is not."""
    return not dense(one)


def written(run):
    """The report of a run without a baseline."""
    return report.write(found(run, run.folder)).read_text()


@pytest.mark.parametrize("batches", [(1, 8), (1, 8, 16, 32, 64, 128, 256, 384)])
def test_the_figure_has_a_panel_a_shape_and_a_series_a_method(tmp_path, batches):
    """Titles, legends with sizes, a label a point, and the mark of memory running out: read from the SVG."""
    run = make_run(tmp_path / "run", batches, models=("llama-7b", "vicuna-13b"), oom_from=batches[-1])
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        png = figures.draw(list(run.cells.values()), run.subjects, run.folder)
    svg = png.with_suffix(".svg").read_text()
    for model in ("llama-7b", "vicuna-13b"):
        assert all(f"{model}: {i} in, 128 out" in svg for i in (12, 82))
    assert svg.count("Ours 4.9B") == svg.count("Dense 6.7B") == 4
    assert svg.count(f"OOM at M{batches[-1]}") == 4
    assert all(svg.count(f">M{m}<") == (4 if m == batches[-1] else 8) for m in batches)
    pixels = imread(png)
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05


def test_a_run_with_nothing_to_draw_still_reports(tmp_path):
    """All out of memory: no figure, and the report says so."""
    run = make_run(tmp_path / "run", (1,), oom_from=1)
    change(run, status="oom")
    text = written(run)
    assert "No cell has a time to draw" in text
    assert not list(run.folder.glob("*.png"))


def test_the_tables_say_what_pruning_bought(tmp_path):
    """Latency with its interval, throughput, TTFT, TPOT, speed-up, verdict, and the headline."""
    run = make_run(tmp_path / "run", (1, 8), factor=0.5)
    text = written(run)
    (row,) = [r for r in text.splitlines() if r.startswith("| depth-ppl:9L/i12-o128/m8/")]
    values = [v.strip() for v in row.strip("|").split("|")]
    # (0.02 * 128 + 0.01 * 8) / 2 = 1.32 s, middle of five samples 2 % up: 1.3464 s for 8 * 128 tokens.
    assert values[1] == "1.346 (1.320 to 1.373)"
    assert values[2] == f"{8 * 128 / 1.3464:.1f}"
    assert values[3:] == ["50.0", "10.00 (p99 11.00)", "8.0GB", "x2.00\N{DAGGER}", "no baseline"]
    assert (
        "x2.00 to x2.00 the speed of dense with 4.9B of 6.7B parameters; measured in turn with dense in 0 of 4" in text
    )


def test_a_gain_says_whether_dense_was_measured_in_turn(tmp_path):
    """In its row, in the headline and under the reading; the note on the mark is there where the mark is."""
    run = make_run(tmp_path / "run", (1, 8), factor=0.5)
    change(run, lambda one: ours(one) and one.cell.batch == 8, dense=Pairs((1.0,) * 8, (2.5,) * 8))
    text = written(run)
    assert len(re.findall(r"\| +x2\.00\N{DAGGER} +\|", text)) == 2
    assert len(re.findall(r"\| +x2\.50 +\|", text)) == 2
    assert "measured in turn with dense in 2 of 4." in text
    assert "\n2 of 4 cells were measured in turn with dense. \N{DAGGER} dense was" in text
    assert "x2.00\N{DAGGER} to x2.50" in text
    change(run, ours, dense=Pairs((1.0,) * 8, (2.5,) * 8))
    text = written(run)
    assert "\N{DAGGER}" not in text
    assert "\n4 of 4 cells were measured in turn with dense. vs dense" in text


def test_a_time_a_token_is_left_out_where_it_cannot_be(tmp_path):
    """It was not measured, or the first token is said to have taken longer than all."""
    run = make_run(tmp_path / "run", (1, 8), factor=0.5)
    change(run, dense, tpot_s=None)
    change(run, lambda one: one.cell.batch == 8, ttft_s=(100.0,) * 5)
    rows = [line for line in written(run).splitlines() if "/eager-fp16 " in line]
    assert ["p99" in row for row in rows] == [
        not dense and m == 1 for dense in (1, 0) for _ in range(2) for m in (1, 8)
    ]


def test_what_is_slower_than_dense_is_flagged(tmp_path):
    """In its row and in the headline; where the intervals overlap neither is said."""
    run = make_run(tmp_path / "slower", (1, 8), factor=1.2)
    text = written(run)
    assert text.count("| x0.83\N{DAGGER} **slower** |") == 4
    assert "**slower than dense in 4 of 4 cells**" in text
    alike = make_run(tmp_path / "alike", (1,), factor=1.01)
    text = written(alike)
    assert len(re.findall(r"x0\.99\N{DAGGER} ~ +\| no baseline", text)) == 2
    assert "; not told from dense in 2 of 2;" in text
    assert "slower than dense" not in text


def test_the_report_tells_the_published_reading(tmp_path):
    """Ours above dense in both panels, a larger batch, and the plateau."""
    run = make_run(tmp_path / "run", (1, 8, 16), oom_from=16, factor=0.7)
    text = story.told(list(run.cells.values()))
    assert "| depth pruning is above dense at every M | 2 of 2 panels |" in text
    assert "| a larger M fits after pruning           | 2 of 2 panels |" in text
    row = next(line for line in text.splitlines() if "llama-7b, 12 in, 128 out | depth-ppl:9L" in line)
    assert "x1.43\N{DAGGER} to x1.43\N{DAGGER}" in row
    assert " 16+ |" in row
    row = next(line for line in text.splitlines() if "llama-7b, 12 in, 128 out | dense" in line)
    assert [v.strip() for v in row.split("|")][4:] == ["8", "", "", ""]
    slower = make_run(tmp_path / "slower", (1,), factor=1.1)
    assert "| depth pruning is above dense at every M | 0 of 2 panels |" in story.told(list(slower.cells.values()))
    assert story.told(list(filter(dense, run.cells.values()))) == ""


def test_each_engine_has_a_reading_of_its_own(tmp_path):
    """Ours is faster than dense in eager generation and not in compiled; beside each other, times are said."""
    run = make_run(tmp_path / "run", (1,), factor=0.5)
    eager = list(run.cells.values())
    change(run, dense, factor=0.05)
    change(run, ours, factor=0.1)
    cells = [*eager, *(replace(one, cell=replace(one.cell, engine="compiled")) for one in run.cells.values())]
    text = story.told(cells)
    assert re.search(r"\| depth pruning is above dense at every M \| eager fp16 +\| 2 of 2 panels", text)
    assert re.search(r"\| depth pruning is above dense at every M \| compiled fp16 +\| 0 of 2 panels", text)
    (row,) = [line for line in story.side_by_side(cells).splitlines() if "llama-7b/dense/i12-o128/m1 " in line]
    assert "(x20.00)" in row
    assert story.side_by_side(eager) == ""


def test_a_time_that_a_larger_batch_undercuts_is_marked_and_shows_no_speed_up(tmp_path):
    """Dense's M1 took twice what its M8 took: Ours seems x4 as fast there, and is told so by M8 alone."""
    run = make_run(tmp_path / "run", (1, 8), factor=0.5)
    change(run, lambda one: dense(one) and one.cell.batch == 1, factor=2)
    text = written(run)
    assert len(re.findall(r"\) ! +\|", text)) == 2
    assert len(re.findall(r"\| +x4\.00\N{DAGGER} +\|", text)) == 2, "even dense's M8 takes longer than Ours at M1"
    change(run, ours, factor=2)
    text = written(run)
    assert len(re.findall(r"\| +x2\.00\N{DAGGER} ~ +\|", text)) == 2, "dense's M8 does not"
    assert "not told from dense in 4 of 4" in text
    assert "depth pruning is above dense at every M | 0 of 2 panels, not told in 2 |" in text


@given(st.lists(st.fixed_dictionaries({name: st.text() for name in ("cell", "x|y\nz")}), min_size=1))
def test_every_row_of_a_table_has_the_cells_of_its_head(rows):
    """Whatever names and reasons hold: pipes, line ends of any kind, other scripts."""
    lines = tabulated(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 and line[-1] == "|" for line in lines)


def test_a_report_has_the_grids_order_whatever_was_measured_first(tmp_path):
    """Pieces of a run come as they come."""
    run = make_run(tmp_path / "run", (1, 8, 16))
    before = [c.id for c in results.in_order(run.cells.values())]
    assert before == list(run.cells)
    for seed in range(5):
        mixed = random.Random(seed).sample(list(run.cells.values()), len(run.cells))
        after = results.in_order(mixed)
        assert [c.cell.batch for c in after] == [1, 8, 16] * 4
        assert len({(c.cell.method, c.cell.input_tokens) for c in after[:3]}) == 1


def test_the_baseline_is_stable_and_judges(tmp_path):
    """Accepting the same run twice gives the same bytes; another run is judged, and its software shown beside."""
    first = make_run(tmp_path / "a", (1, 8))
    update = Update("first")
    accept(found(first, tmp_path), update)
    (path,) = (tmp_path / "baselines" / "h100" / "gpu").iterdir()
    before = path.read_bytes()
    accept(found(first, tmp_path), update)
    assert path.read_bytes() == before
    slower = make_run(tmp_path / "b", (1, 8), factor=0.8, night=2)
    findings = found(slower, tmp_path, alone=8)
    text = report.write(findings).read_text()
    assert "Against the baseline of 1 night: 4 same, 4 slower." in text
    assert text.count("| slower (+60.0%)") == 4
    assert "| torch" in text


def test_a_torn_line_costs_that_line_and_is_told(tmp_path):
    """In the report and by `compare`; what is no result, or of another schema, is refused."""
    run = make_run(tmp_path / "a", (1,))
    path = run.folder / results.FILE
    whole = path.read_text()
    path.write_text(whole[:-10])
    torn = results.read(run.folder)
    assert len(torn.cells) == len(run.cells) - 1
    assert f"- 1 of its lines could not be read: {path}, line 7" in written(torn)
    path.write_text(whole.replace(SCHEMA, "other/2"))
    with pytest.raises(ResultsError, match="schema 'other/2'"):
        results.read(run.folder)


def test_a_run_of_another_machine_is_not_gone_on_with(tmp_path):
    """Times of two machines never share a run."""
    from slimcore.bench.grid.grids import Grid
    from slimcore.bench.measure.protocol import Protocol
    from slimcore.bench.suite.lanes import Machine
    from slimcore.bench.suite.opening import Places
    from slimcore.bench.suite.session import Options, Session

    make_run(tmp_path / "reports" / "gpu-1", (1,))
    grid = Grid("gpu", "cpu", "fp32", ("eager",), (1,), (1,), (1,), {"tiny": ("dense",)})
    with pytest.raises(ResultsError, match="measured with machine 'h100'"):
        Session(grid, grid.cells(), Places(tmp_path, tmp_path / "reports", tmp_path), Protocol(), Machine("cpu"),
                Options("gpu-1"))  # fmt: skip
