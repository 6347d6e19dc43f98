"""slimcore's plugin in a project that has only installed it, in fresh processes: see example_project."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests import doubles

ROOT = Path(__file__).parent.parent
FIRST, SECOND = (f"tests/test_speed.py::test_step[{name}]" for name in ("first", "second"))
FOREIGN = """
import os
import sys

import pytest
import slimcore


@pytest.fixture
def timed():
    return "mine"


@pytest.mark.parametrize("cell", [1, 2])
def test_names_are_free(timed, cell):
    assert (timed, "torch" in sys.modules, os.environ["CUDA_VISIBLE_DEVICES"]) == ("mine", False, "7")


def test_scheduler_is_pytests_own(pytestconfig):
    from slimcore.bench.suite.parallel import pytest_xdist_make_scheduler

    assert pytestconfig.option.dist == "no"
    pytestconfig.option.dist = "load"
    assert pytest_xdist_make_scheduler(pytestconfig, None) is None
    pytestconfig.option.dist = "no"


@pytest.fixture
def mapping():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING


def test_auto_classes_know_slimcores(mapping):
    assert mapping["slimcore_llama"].__name__ == "SlimLlamaConfig"
"""
ACCEPT = ("--perf-update", "--perf-reason=test", "--perf-allow=dirty,inconclusive")


def installed(into):
    """A folder for PYTHONPATH that holds slimcore as installing it would: workers' canary is steady there."""
    doubles.copied(into)
    ((group, plugins),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"].items()
    info = into / "slimcore-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slimcore\nVersion: 0.1.0\n")
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in plugins.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return into


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where slimcore is installed."""
    return installed(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, site):
    """Run pytest in a copy of the project, accepted once; the finished process."""
    folder = shutil.copytree(ROOT / "tests" / "example_project", tmp_path_factory.mktemp("project") / "example")

    def run(*options, **environment):
        path = os.pathsep.join(map(str, (site, folder)))
        environment = os.environ | {"PYTHONPATH": path, "DOUBLES": "takes(0.01)"} | environment
        command = [sys.executable, "-m", "pytest", "--perf-seconds=0.3", *options]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    run.folder = folder
    run.accepted = run("-v", "tests/test_speed.py", *ACCEPT)
    return run


def test_steps_are_timed_and_accepted(project):
    """The plugin is there without being asked for; the report has neither tokens nor a figure."""
    done = project.accepted
    assert done.returncode == 0, done.stdout
    assert f"{FIRST} 0.010" in done.stdout.replace("PASSED", "")
    baselines = project.folder / "baselines"
    assert [p.parent.name for p in baselines.rglob("*.json")] == ["timed"]
    (report,) = project.folder.glob("reports/timed-*/report.md")
    assert FIRST in report.read_text()
    assert "tokens" not in report.read_text()
    assert not list(report.parent.glob("*.png"))


def test_a_step_that_takes_a_third_longer_is_red_and_the_other_green(project):
    """Measured again in further rounds; the failure is in JUnit's file with its cause; history reads the nights."""
    done = project("tests/test_speed.py", "--junitxml=junit.xml", SLOWER="first")
    assert "1 failed, 1 passed" in done.stdout
    cases = ET.parse(project.folder / "junit.xml").iter("testcase")  # noqa: S314 - our own
    failed = {case.get("name"): case.find("failure") for case in cases}
    assert failed["test_step[second]"] is None
    message = failed["test_step[first]"].text
    assert f"{FIRST}: slower, 3" in message
    assert "in 4 further rounds" in message
    assert f"measure it again: pytest '{FIRST}'" in message


def test_workers_time_steps_and_measure_cells_in_a_run_each(project):
    """Each its own tests; the controller concludes both runs."""
    done = project("-n", "2")
    assert done.returncode == 0, done.stdout
    assert "2 of 2 cells measured: 2 ok." in done.stdout
    assert "1 of 1 cells measured: 1 ok." in done.stdout
    assert done.stdout.count("report: ") == 2
    assert len(list(project.folder.glob("reports/*/throughput_latency.png"))) == 1


def test_a_suite_that_measures_nothing_is_left_alone(site, tmp_path):
    """Its names, processes and scheduler are its own; a plugin named twice is there once; slimcore still registers."""
    (tmp_path / "test_foreign.py").write_text(FOREIGN)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["slimcore.bench.suite.plugin"]')
    environment = os.environ | {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": "7"}
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and p.name[0] not in "._") == []
