"""The gate in whole runs, where every generate takes the time it is told to: workers, crashes, slowdowns, JUnit."""

import json
import os
import subprocess
import sys
from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from slimcore.bench.grid.cells import Cell
from slimcore.bench.suite import executor
from tests import doubles
from tests.doubles import ROOT, copied
from tests.test_suite import DENSE, GRIDS, OURS, UPDATE, _imported, install, suite  # noqa: F401 - fixtures


@pytest.fixture
def real(tmp_path):
    """A checkout whose engine is the double; starts the suite there in a process of its own."""
    copied(tmp_path)
    rules = tmp_path / "slimcore" / "bench" / "judge" / "rules.py"
    rules.write_text(rules.read_text().replace("PROCESSES = 4", "PROCESSES = 2"))  # so large a slowdown needs no more
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["slimcore.bench.suite.plugin"]')
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "perf").mkdir()
    (tmp_path / "perf" / "grids.toml").write_text(GRIDS)
    (tmp_path / "perf" / "test_generation.py").write_text((ROOT / "perf" / "test_generation.py").read_text())

    def run(*options, doubles):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "DOUBLES": doubles}
        command = [sys.executable, "-P", "-m", "pytest", "perf", "-rf", "--perf-seconds=0", *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def measured(tmp_path):
    """How often each cell was measured, over all files of a run; a suspect that was measured again counts twice."""
    lines = [line for p in tmp_path.glob("reports/*/results*.jsonl") for line in p.read_text().splitlines()]
    cells = [r for r in map(json.loads, lines) if r["kind"] == "cell" and r["status"] != "error"]
    return Counter(Cell(**r["cell"]).id for r in cells)


def junit(path):
    """The message of each failed test, by name."""
    cases = ET.parse(path).iter("testcase")  # noqa: S314 - our own file
    return {case.get("name"): failure.text for case in cases if (failure := case.find("failure")) is not None}


def test_workers_lose_nothing_to_a_process_that_dies(real, tmp_path):
    """Under -n 2, SIGKILL of one that measures: an error of its cell; going on measures that cell, and no other."""
    cells = {i.format(m) for i in (DENSE, OURS) for m in (1, 2)}
    died = tmp_path / "died"
    code, out = real("-n", "2", doubles=f"takes(0.05); dies(6, 2, once={str(died)!r})")
    assert code == 1
    assert "a measuring process ended by signal 9" in out
    assert died.exists()
    assert set(measured(tmp_path)) == cells - {OURS.format(2)}
    assert "whole run" not in out
    code, out = real("-n", "2", "--perf-resume", *UPDATE, doubles="takes(0.05)")
    assert code == 0, out
    assert measured(tmp_path) == dict.fromkeys(cells, 1)
    assert "accepted 4 cells as the night" in out


def test_a_slowdown_is_a_failed_test_that_says_what_there_is_to_know(suite, install, pytester, monkeypatch):  # noqa: F811
    """In the terminal and in JUnit, after fresh processes; the other cells stay green."""
    monkeypatch.setattr(executor, "PROCESSES", 2)
    install(doubles.takes, 0.05)
    assert suite(*UPDATE).ret == 0
    install(doubles.slower, 6, 1, 0.5)
    result = suite("--perf-reports", "second", "--junitxml=junit.xml")
    cell = OURS.format(1)
    result.assert_outcomes(passed=3, failed=1, deselected=3)
    result.stdout.fnmatch_lines([f"FAILED perf/test_generation.py::test_generation[[]{cell}[]]*"])
    message = junit(pytester.path / "junit.xml")[f"test_generation[{cell}]"]
    for words in (
        f"{cell}: slower, ", "% longer (", ", z ", "median latency: 0.05", "in 2 fresh processes",
        "measure it again: pytest 'perf/test_generation.py::test_generation[",
    ):  # fmt: skip
        assert words in message


def test_a_slower_version_fails_beside_the_other_one(real, tmp_path):
    """--perf-against: only the cell that became slower, after fresh pairs of processes; no baseline is needed."""
    other = copied(tmp_path / "other")
    double = other / "slimcore" / "bench" / "measure" / "doubles.py"
    double.write_text(double.read_text().replace("_SLOWER[layers, rows] = share", "pass"))
    options = ("--perf-methods=depth-ppl:2L", "--perf-against", "./other")
    code, out = real(*options, doubles="takes(0.05); slower(6, 2, 0.5)")
    assert code == 1, out
    assert "1 same, 1 slower" in out
    assert f"{OURS.format(2)}: slower, " in out
    assert "6 pairs in turn in 2 fresh pairs of processes" in out
    assert not list(tmp_path.glob("baselines/*"))
