"""The gate in whole runs, where every generate takes the time it is told to: workers, crashes, slowdowns, JUnit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from xml.etree import ElementTree as ET

import psutil
import pytest

from tests.slow_engine import ROOT, copied
from tests.test_suite import DENSE, GRIDS, OURS

ACCEPT = ("--perf-update", "--perf-reason=first", "--perf-allow=dirty,inconclusive")
SLOW = {"SLOW_LAYERS": "6:0.5"}


@pytest.fixture
def suite(tmp_path):
    """A checkout whose engine is the double; starts the suite there in a process of its own."""
    copied(tmp_path)
    gate = tmp_path / "slimcore" / "bench" / "gate.py"
    gate.write_text(gate.read_text().replace("PROCESSES = 4", "PROCESSES = 2"))  # so large a slowdown needs no more
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["slimcore.bench.suite.plugin"]')
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    cpu: x\n    gpu: x")
    (tmp_path / "perf").mkdir()
    (tmp_path / "perf" / "grids.toml").write_text(GRIDS)
    (tmp_path / "perf" / "test_generation.py").write_text((ROOT / "perf" / "test_generation.py").read_text())

    def start(*options, **environment):
        inherited = os.environ | {"PYTHONPATH": str(tmp_path), "FIXED_SECONDS": "0.05"}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pytest", "perf", "-rf", "--perf-seconds=0", *options],
            cwd=tmp_path, env=inherited | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return start


def measured(tmp_path, run="*"):
    """How often each cell was measured, over all files of a run; a suspect that was measured again counts twice."""
    lines = [line for p in tmp_path.glob(f"reports/{run}/results*.jsonl") for line in p.read_text().splitlines()]
    return Counter(r["id"] for r in map(json.loads, lines) if r["kind"] == "cell")


def junit(path):
    """The message of each failed test, by name."""
    cases = ET.parse(path).iter("testcase")  # noqa: S314 - our own file
    return {case.get("name"): failure.text for case in cases if (failure := case.find("failure")) is not None}


def test_workers_that_die_lose_nothing_and_a_slowdown_is_a_failed_test(suite, tmp_path):
    """SIGKILL of a worker, then of the controller: what was finished stays, resuming completes, the verdict stands."""
    cells = {i.format(m) for i in (DENSE, OURS) for m in (1, 2)}
    first = ("-n", "2", "--perf-reports", "reports")
    killed = suite(*first, SLOW_LAYERS="6:0", CRASH_ONCE=str(tmp_path / "crashed"))
    out, _ = killed.communicate()
    assert killed.returncode == 1
    assert "crashed" in out
    assert (tmp_path / "crashed").exists()
    assert set(measured(tmp_path)) >= cells - {OURS.format(2)}  # a replacement may have measured that too
    assert "whole run" not in out
    resumed = suite(*first, "--perf-resume", *ACCEPT)
    out, _ = resumed.communicate()
    assert resumed.returncode == 0, out
    assert measured(tmp_path) == dict.fromkeys(cells, 1)
    assert "accepted 4 cells as the night" in out

    (before,) = tmp_path.glob("reports/*")
    part = ("-n", "2", "--perf-batches=1")
    slow = suite(*part, **SLOW)
    deadline = time.monotonic() + 120
    while not _new(tmp_path, before) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(slow.pid).children(recursive=True)
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    slow.stdout.close()
    psutil.wait_procs(workers, timeout=60)
    (run,) = [p.name for p in tmp_path.glob("reports/*") if p != before]
    done = measured(tmp_path, run)
    assert done
    resumed = suite(*part, "--perf-resume", "--junitxml=junit.xml", **SLOW)
    out, _ = resumed.communicate()
    assert resumed.returncode == 1
    assert set(measured(tmp_path, run)) == {DENSE.format(1), OURS.format(1)}
    assert all(measured(tmp_path, run)[cell] == 1 for cell in done if "dense" in cell)
    cell = OURS.format(1)
    assert f"FAILED perf/test_generation.py::test_generation[{cell}]" in out
    message = junit(tmp_path / "junit.xml")[f"test_generation[{cell}]"]
    for words in (
        f"{cell}: slower, ", "% longer (", ", z ", "median latency: 0.05", "in 2 fresh processes",
        "measure it again: pytest 'perf/test_generation.py::test_generation[",
    ):  # fmt: skip
        assert words in message


def _new(tmp_path, before):
    """Cells measured in runs other than `before`."""
    return [p for p in tmp_path.glob("reports/*/results-gw*.jsonl") if p.parent != before and '"cell"' in p.read_text()]


def test_a_slower_version_fails_beside_the_other_one(suite, tmp_path):
    """--perf-against: only the cell that became slower, after fresh pairs of processes; no baseline is needed."""
    other = copied(tmp_path / "other")
    double = other / "slimcore" / "bench" / "slow_engine.py"
    double.write_text(double.read_text().replace("SLOW_LAYERS", "IT_DOES_NOT_READ"))
    run = suite("--perf-batches=1", "--perf-against", "other", **SLOW)
    out, _ = run.communicate()
    assert run.returncode == 1
    assert "1 same, 1 slower" in out
    assert f"{OURS.format(1)}: slower, " in out
    assert "6 pairs in turn in 2 fresh pairs of processes" in out
    assert not list(tmp_path.glob("baselines/*"))
