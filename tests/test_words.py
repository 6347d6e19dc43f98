"""What the README, the workflows and the Makefile tell people to type exists."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from slimcore.cli import app

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXTS = [ROOT / "README.md", ROOT / "Makefile", *WORKFLOWS]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_options_and_commands_that_are_named_exist(path, pytestconfig):
    """Those of `pytest perf` and of `slimcore`."""
    text = path.read_text()
    known = {name.replace("_", "-") for name in vars(pytestconfig.option)}
    assert set(re.findall(r"--(perf-[a-z-]*[a-z])", text)) <= known
    commands = {command.callback.__name__ for command in app.registered_commands} | {"eval"}
    named = set(re.findall(r"(?:^ {4}|`|/|run: )slimcore ([a-z]+)\b", text, re.MULTILINE))
    assert named <= commands
    if path.name == "README.md":
        assert {"prune", "compare", "history"} <= named


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_are_whole(path):
    """YAML with jobs of steps; make targets that are there; nothing runs with more rights than it says."""
    flow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "permissions" in flow
    for job in flow["jobs"].values():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        assert set(re.findall(r"^make ([a-z]+)", commands, re.MULTILINE)) <= targets
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_python_runs_what_the_readme_runs():
    """The version that pyproject asks for is the one that the workflows take."""
    asked = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert all(f'python-version: "{asked}"' in p.read_text() for p in WORKFLOWS if "setup-python" in p.read_text())
    assert sys.version_info >= tuple(map(int, asked.split(".")))
