"""The fixture `timed`, in runs of its own: what it repeats, writes, judges and refuses."""

import json

import pytest

from slimcore.bench.suite import workers
from tests import doubles

SUITE = """
import time

import pytest


def test_quick(timed):
    timed(lambda: None)


def test_raising(timed):
    timed(lambda: [][0])


def test_twice(timed):
    timed(lambda: time.sleep(1e-3))
    with pytest.raises(pytest.fail.Exception, match="calls timed twice"):
        timed(lambda: time.sleep(1e-3))
"""
STEADY = """
import time
from pathlib import Path


def test_step(timed):
    timed(lambda: time.sleep(float(Path("seconds").read_text())))
"""


@pytest.fixture
def suite(pytester, monkeypatch, forked):
    """Run pytest on a text, whose workers read a steady canary."""
    monkeypatch.setattr(workers, "launch", forked)
    monkeypatch.setattr(forked, "doubles", [doubles.partial(doubles.takes, 0.01)])
    pytester.makeconftest('pytest_plugins = ["slimcore.bench.suite.plugin"]')

    def run(text, *options):
        pytester.makepyfile(text)
        return pytester.runpytest_inprocess("--perf-seconds=0.1", *options)

    return run


def cells(pytester):
    """Records of all runs, by the test's name, the latest last."""
    lines = [line for p in sorted(pytester.path.glob("reports/*/results.jsonl")) for line in p.read_text().splitlines()]
    read = [json.loads(line) for line in lines]
    return {r["cell"]["model"].partition("::")[2]: r for r in read if r["kind"] == "cell"}


def test_code_is_timed_or_fails_as_itself(suite, pytester):
    """Calls too short for a clock are many in a sample; what is raised is shown where it was; resuming tries again."""
    result = suite(SUITE, "-v")
    result.assert_outcomes(passed=2, failed=1, errors=0)
    result.stdout.fnmatch_lines(["*lambda: [[][]][[]0[]])*", "E *IndexError: list index out of range"])
    result.stdout.no_fnmatch_line("*timing.py*")
    found = cells(pytester)
    assert 1e-9 < found["test_quick"]["times"]["latency_s"][0] < 1e-5
    assert (found["test_raising"]["status"], found["test_raising"]["detail"][:10]) == ("error", "IndexError")
    assert len(found["test_twice"]["times"]["latency_s"]) >= 5
    again = suite(SUITE, "-v", "--perf-resume")
    again.assert_outcomes(passed=2, failed=1)
    again.stdout.fnmatch_lines(["3 of 3 cells measured: 2 ok, 1 error (2 of them *"])


def test_a_suspect_is_measured_in_further_rounds(suite, pytester):
    """By the same process; where they clear it, it is green; a level that is meant is accepted anew."""
    (pytester.path / "seconds").write_text("0.004")
    accept = ("--perf-update", "--perf-reason=test", "--perf-allow=dirty,inconclusive")
    suite(STEADY, *accept).assert_outcomes(passed=1)
    (pytester.path / "seconds").write_text("0.006")
    result = suite(STEADY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*::test_step: slower, *", "*in 4 further rounds*"])
    assert len(cells(pytester)["test_step"]["fresh"]) == 4
    suite(STEADY, "--perf-update=replace", *accept[1:])
    assert suite(STEADY).ret == 0


@pytest.mark.parametrize("option", ["--perf-against=.", "--perf-aa=2"])
def test_two_versions_of_it_are_compared_by_two_runs(suite, pytester, option):
    """In one process there is one: refused, and nothing is written."""
    result = suite(STEADY, option)
    assert result.ret != 0
    result.stderr.fnmatch_lines(["ERROR: *::test_step takes `timed`*slimcore compare RUN_A RUN_B"])
    assert not (pytester.path / "reports").exists()


def test_a_plan_says_how_many_tests_there_are(suite):
    """How long they take is known when they have run."""
    suite(STEADY, "--perf-plan").stdout.fnmatch_lines(["1 tests time code of their own*"])
