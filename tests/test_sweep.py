"""A sweep, its figure, and the picture of perplexity against speed."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

import slimcore
from slimcore import healing
from slimcore.bench.grid.cells import Cell
from slimcore.bench.measure.subject import Built
from slimcore.bench.records.records import Quality, Times
from slimcore.bench.report import pareto
from slimcore.bench.report import writing as report
from slimcore.bench.sweep import _Work
from slimcore.trial import Verdict
from tests.helpers import tiny
from tests.made_up import found, make_run


@pytest.fixture
def model(tmp_path, tokenizer):
    """A saved model of ten layers."""
    return slimcore.save(tiny(layers=10), tmp_path / "model", tokenizer=tokenizer)


def test_a_sweep_scores_once_and_goes_on(run, model, prose, tmp_path, monkeypatch):
    """A row a cut, as prune and eval would give it; what is there is not done again; another sweep is refused."""
    scored, plain = [], _Work._measured

    def counted(self, work):
        scored.append(1)
        return plain(self, work)

    monkeypatch.setattr(_Work, "_measured", counted)
    asked = ("sweep", model, "--out", tmp_path / "out", "--text", prose, "--samples", 4, "--length", 32,
             "--heal-samples", 4, "--limit", 512, "--heldout", "builtin", "--heldout", prose)  # fmt: skip
    code, out, err = run(*asked, "--methods", "dense,depth-ppl,depth-ppl+heal", "--ratios", "0.1,0.2")
    assert code == 0
    warned = "is what the model was calibrated on: its perplexity flatters; measure on another text"
    assert err == f"warning: {prose} {warned}\n"
    assert f"**Warning**: prose.txt {warned}." in (tmp_path / "out" / "sweep.md").read_text()
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [(row["method"], row["ratio"]) for row in rows] == [
        ("dense", 0.0), ("depth-ppl", 0.1), ("depth-ppl", 0.2), ("depth-ppl+heal", 0.1), ("depth-ppl+heal", 0.2)
    ]  # fmt: skip
    assert len(scored) == 3  # depth-ppl, and two refits
    assert [row["parameters"] for row in rows[1:3]] == [row["parameters"] for row in rows[3:]]
    assert out.count("\n| depth-ppl") == 4
    assert f"report: {tmp_path / 'out' / 'sweep.md'}" in out
    assert imread(tmp_path / "out" / "quality.png").std() > 0.05

    network, tokenizer = slimcore.load(model)
    tokens = slimcore.calibration_tokens(tokenizer, samples=4, length=32, source=prose)
    plan = slimcore.select(slimcore.score(network, tokens, method="depth-ppl"), ratio=0.2)
    windows = slimcore.calibration_tokens(tokenizer, samples=4, length=128, source=prose)
    slimcore.heal_(network, plan, windows)
    held = slimcore.heldout_tokens(tokenizer, limit=512, source=prose)
    assert rows[-1]["perplexity"]["prose.txt"] == pytest.approx(slimcore.perplexity(network, held).value)
    assert rows[-1]["achieved"] == plan.ratio

    scored.clear()
    assert run(*asked, "--methods", "dense,depth-ppl,depth-magnitude", "--ratios", "0.1,0.2")[0] == 0
    assert len(scored) == 1  # depth-magnitude
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [
        "dense",
        *["depth-ppl"] * 2,
        *["depth-magnitude"] * 2,
        *["depth-ppl+heal"] * 2,
    ]
    code, _, err = run(*asked, "--limit", 256)
    assert code == 2
    assert "is a sweep with limit 512, this has 256: choose another folder" in err
    assert run(*asked[:3], tmp_path / "x", "--samples", 4)[2].startswith("error: --samples and --length go together")
    assert "are not numbers separated by commas" in run(*asked[:3], tmp_path / "x", "--ratios", "a")[2]


@given(st.lists(st.tuples(st.floats(0.5, 3), st.floats(10, 1e4)), min_size=1))
def test_nothing_beats_the_front(figures):
    """No point is better than one of the front in both; each of the others is beaten by one of it."""
    points = [pareto.Point("a", False, *figure) for figure in figures]
    best = pareto.front(points)

    def beats(a, b):
        return a.gain >= b.gain and a.perplexity <= b.perplexity and (a.gain, a.perplexity) != (b.gain, b.perplexity)

    assert not any(beats(p, b) for p in points for b in best)
    assert all(p in best or any(beats(b, p) or b == p for b in best) for p in points)


def test_the_report_draws_perplexity_against_speed(tmp_path):
    """Where three subjects have a perplexity: speed-up at the smallest and the largest M of all."""
    made = make_run(tmp_path / "run", (1, 8), factor=0.5)
    for one in [one for one in made.cells.values() if one.cell.method != "dense"]:
        times = Times(tuple(seconds / 2 for seconds in one.times.latency_s))
        made.add(replace(one, cell=replace(one.cell, method="depth-ppl+heal:9L"), times=times))
    assert pareto.speeds(made.cells.values(), made.subjects) == {}
    ours = made.subjects["llama-7b", "depth-ppl:9L", "fp16"]
    made.add(replace(ours, method="depth-ppl+heal:9L"))
    made.add(replace(ours, method="flap:0.27"))
    dense = next(iter(made.cells.values()))
    made.add(replace(dense, cell=replace(dense.cell, method="flap:0.27")))
    tokens = {"text": "t", "bos": False, "windows": [1, 128], "tokens_sha256": "a"}
    for subject, value in zip(list(made.subjects.values()), (5.0, 20.0, 9.0, None), strict=True):
        made.add(replace(subject, perplexity=Quality(value, 127, tokens)))
    panels = pareto.speeds(made.cells.values(), made.subjects)
    assert list(panels) == ["llama-7b, M1", "llama-7b, M8"]
    assert [(p.method, p.healed, round(p.gain, 3), p.perplexity) for p in panels["llama-7b, M8"]] == [
        ("Dense", False, 1.0, 5.0), ("Ours", False, 2.0, 20.0), ("Ours", True, 4.0, 9.0)
    ]  # fmt: skip
    made.add(replace(made.start, started="2026-01-01T01", cells=tuple(made.cells)))
    text = report.write(found(made, tmp_path)).read_text()
    assert f"![Perplexity against speed]({pareto.FIGURE})" in text
    assert [row.split("|")[-2].strip() for row in text.splitlines() if "| fp16 " in row] == [
        "5.00",
        "20.00",
        "9.00",
        "inf",
    ]
    assert imread(made.folder / pareto.FIGURE).std() > 0.05


def test_a_healed_cell_is_healed_once(model, monkeypatch):
    """Plan and perplexity are recorded; where they are known already, only the shape is cut: that decides on speed."""
    monkeypatch.setattr(healing, "judge", lambda *_: Verdict(1.0, {"a": 2.0}, {"a": 1.0}))
    healed = Cell(str(model), "depth-magnitude+heal:2L", 12, 2, 1, "eager", "fp32", "cpu")
    record = Built(healed).record
    assert record.label == "Magnitude+, healed"
    assert list(record.plan["steps"][0]["healed"]["error_left"].values()) < [1.0]
    unhealed = Built(replace(healed, method="depth-magnitude:2L")).record
    assert unhealed.costs == record.costs
    assert unhealed.perplexity.value != record.perplexity.value
    monkeypatch.setattr("slimcore.bench.measure.subject.heal_", None)
    assert replace(Built(healed, record).record, seconds=0) == replace(record, seconds=0)


def test_a_sweep_beyond_any_float_is_json_and_told(run, model, tmp_path):
    """null in the file, inf in the table, gone on with; a file with another thing in a row is refused."""
    network, tokenizer = slimcore.load(model)
    with torch.no_grad():
        network.lm_head.weight.mul_(1e4)
    huge = slimcore.save(network, tmp_path / "huge", tokenizer=tokenizer)
    asked = ("sweep", huge, "--out", tmp_path / "out", "--methods", "dense", "--ratios", "0.2", "--limit", 256)
    for _ in range(2):
        code, out, _ = run(*asked)
        assert code == 0
        assert "| inf " in out
    path = tmp_path / "out" / "sweep.json"
    (row,) = json.loads(path.read_text(), parse_constant=pytest.fail)["rows"]
    assert list(row["perplexity"].values()) == [None]
    path.write_text(path.read_text().replace('"achieved": 0.0', '"achieved": "none"'))
    code, _, err = run(*asked)
    assert code == 2
    assert err.startswith(f"error: {path}, row 1: achieved must be a valid number (got 'none')")


def test_a_sweep_knows_a_text_by_its_words(run, model, prose, tmp_path, monkeypatch):
    """By another path, or as a copy of another name: it is calibrated and measured on all the same."""
    copied = tmp_path / "copied.txt"
    copied.write_text(prose.read_text())
    monkeypatch.chdir(tmp_path)
    for heldout in (f"./{prose.name}", copied):
        _, _, err = run("sweep", model, "--out", tmp_path / "out" / str(len(str(heldout))), "--methods", "dense",
                        "--text", prose, "--heldout", heldout, "--limit", 256)  # fmt: skip
        assert err.startswith(f"warning: {heldout} is what the model was calibrated on: its perplexity flatters")
        assert err.count("\n") == 1
