"""Accepted nights: what is read, what is refused, what is compared with, and how cells went over them."""

import json
import math
import random
from dataclasses import replace

import pytest

from slimcore.bench.judge.history import changes
from slimcore.bench.report.conclusion import Update, accept
from tests.made_up import accepted, found, make_run


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


def test_history_takes_an_id_as_it_is_before_it_takes_it_for_a_pattern(run, tmp_path):
    """A model's folder may have brackets."""
    made = make_run(tmp_path / "1", (1,), models=("models/a[1]",))
    accept(found(made, tmp_path), Update("first\nof all"))
    cell = "models/a[1]/dense/i12-o128/m1/eager-fp16"
    code, out, _ = run("history", cell, "--baselines", tmp_path / "baselines")
    assert code == 0
    (row,) = [line for line in out.splitlines() if "2026-01-01" in line]
    assert "first of all" in row


def test_change_points_are_found_and_not_made_up():
    """No step in 30 steady nights, the one that is there to within a night, whatever the seed."""
    for seed in range(20):
        rng = random.Random(seed)
        steady = [rng.gauss(0, 0.008) for _ in range(30)]
        assert changes(steady, 0.008) == []
        (at,) = changes([x + (0.05 if n >= 17 else 0) for n, x in enumerate(steady)], 0.008)
        assert abs(at - 17) <= 1


def test_a_night_of_other_weights_is_not_compared_with(run, tmp_path):
    """Twice as slow, of another model under the same name: no baseline, and said; the next night has the new one's."""
    accepted(tmp_path, 2)
    other = make_run(tmp_path / "other", (1, 8), night=3, factor=1.0, weights="x")
    findings = found(other, tmp_path)
    assert {v.verdict for v in findings.verdicts.values()} == {"no baseline"}
    assert all("accepted nights are of other weights" in v.message for v in findings.verdicts.values())
    assert not findings.failures
    accept(findings, Update("another model"))
    again = make_run(tmp_path / "again", (1, 8), night=4, factor=1.0, weights="x")
    assert {v.verdict for v in found(again, tmp_path).verdicts.values()} == {"same"}
    before = make_run(tmp_path / "before", (1, 8), night=5)
    assert {v.verdict for v in found(before, tmp_path).verdicts.values()} == {"no baseline"}
    code, _, err = run("compare", before.folder, again.folder)
    assert code == 2
    assert "no cell of the same weights in common" in err
    first, *_, last = sorted((tmp_path / "baselines" / "h100" / "gpu").iterdir())
    assert run("compare", first, last)[0] == 2


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
    next(iter(data["cells"].values()))["times"]["latency_s"] = [1.0, bad]
    night.write_text(json.dumps(data))
    code, _, err = run("report", make_run(tmp_path / "new", (1, 8)).folder, "--baselines", tmp_path / "baselines")
    assert code == 2
    assert night.name in err
    assert "latency_s" in err
    assert err.count("\n") == 1


def test_files_of_an_older_schema_are_refused_with_what_to_do(run, tmp_path):
    """A night, and costs."""
    new = make_run(tmp_path / "new", (1, 8), night=2).folder
    for pattern, schema in (("h100/gpu/*.json", "slimcore.baseline/2"), ("gpu.json", "slimcore.costs/1")):
        accepted(tmp_path / schema, 1)
        (path,) = (tmp_path / schema / "baselines").glob(pattern)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
        code, _, err = run("report", new, "--baselines", tmp_path / schema / "baselines")
        assert code == 2
        assert f"has schema {schema!r}, expected" in err
        assert "accept anew with --perf-update" in err


def test_nothing_that_is_no_number_is_written(tmp_path):
    """JSON has no NaN: a file with one could not be read again by others."""
    made = make_run(tmp_path / "1", (1,))
    made.starts[0] = replace(made.start, software={"threads": math.inf})
    with pytest.raises(ValueError, match="JSON compliant"):
        accept(found(made, tmp_path), Update("first"))
