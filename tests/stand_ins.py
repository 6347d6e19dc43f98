"""What stands around the workflows in their tests: machines that measure made-up runs, `gh`, and our command line."""

import argparse
import os
import shlex
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

from slimcore.cli import main
from tests.made_up import make_run
from tests.runner import BODY_LIMIT, ROOT, Runner, git

BATCHES = (1, 8, 64, 128)  # one for each part of the night


class World:
    """A repository on GitHub, four machines that measure made-up runs, and what `gh` was asked."""

    def __init__(self, folder, baselines):
        self.parts = {}  # number -> arguments of its made-up run; None: the machine dies
        self.code = {}  # part or target of make -> exit code
        self.noisy = 0  # part whose times vary by a third
        self.night = 2
        self.open = ""  # number of the open pull request
        self.asked, self.bodies, self.made = [], [], []
        files = {str(p.relative_to(baselines.parent)): p.read_text() for p in baselines.rglob("*.json")}
        files |= {".gitignore": (ROOT / ".gitignore").read_text(), "baselines/README.md": ""}
        self.github = Runner(folder, {"make": self.make, "gh": self.gh, "slimcore": slimcore}, files)
        self.cells = make_run(folder / "whole", BATCHES).planned

    def make(self, call):
        """Do what the Makefile says, but with made-up runs."""
        dry = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", *call.arguments]
        # Tests may run by `make test`, whose own settings are not those of a workflow's.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        recipe = subprocess.run(dry, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
        self.made.append(call.arguments[0])
        if call.arguments[0] == "ready":
            self.github.stand_in(call.folder / ".venv" / "bin" / "slimcore")
        if call.arguments[0] == "perf":
            return self.code.get(self.measure(call, shlex.split(recipe.splitlines()[-1])), 0), "", ""
        return self.code.get(call.arguments[0], 0), "", ""

    def measure(self, call, command):
        """Write the run that `pytest perf` would; the part's number."""
        options = argparse.ArgumentParser()
        for name in ("--perf-shard", "--perf-reports", "--perf-against", "--junitxml"):
            options.add_argument(name)
        given = options.parse_known_args(command)[0]
        if given.perf_against:
            git(call.folder, "rev-parse", "--verify", given.perf_against)
        part = int(given.perf_shard.partition("/")[0]) if given.perf_shard else 1
        made = self.parts.get(part, {})
        if made is not None:
            reports = call.folder / given.perf_reports
            night = {"night": self.night, "shard": given.perf_shard, "grid_cells": self.cells}
            run = make_run(reports / f"figure-{part}", (BATCHES[part - 1],), **(night | made))
            for cell in list(run.cells.values()) if part == self.noisy else ():
                varied = tuple(cell.latency * scale for scale in (0.7, 1.3, 1, 1.35, 0.75))
                run.append(replace(cell, times=replace(cell.times, latency_s=varied)))
            (call.folder / given.junitxml).write_text("<testsuites/>")
            if "GITHUB_STEP_SUMMARY" in call.env:
                Path(call.env["GITHUB_STEP_SUMMARY"]).write_text("measured")
        return part

    def gh(self, call):
        """Keep what it was asked; an open pull request is one that is listed."""
        assert call.env["GH_TOKEN"] == "secret"  # noqa: S105 - no secret
        self.asked.append(call.arguments)
        if call.arguments[:2] == ["pr", "list"]:
            return 0, self.open, ""
        body = (call.folder / call.arguments[call.arguments.index("--body-file") + 1]).read_text()
        assert len(body) <= BODY_LIMIT
        self.bodies.append(body)
        self.open = "5\n"
        return 0, "", ""

    def nightly(self, number=7):
        """Run the night: what became of its jobs."""
        return self.github.run("nightly.yml", number=number)

    def changes(self, branch):
        """Files that a branch adds to `main` or changes, in its one commit."""
        assert git(self.github.origin, "rev-list", "--count", f"main..{branch}") == "1"
        return git(self.github.origin, "diff", "--name-only", "main", branch).splitlines()

    def branches(self):
        """All but `main`."""
        names = git(self.github.origin, "branch", "--format=%(refname:short)").splitlines()
        return [name for name in names if name != "main"]

    def artifacts(self, number=7):
        """Names of what a run keeps."""
        return sorted(path.name for path in (self.github.artifacts / str(number)).iterdir())


def slimcore(call):
    """The command line, in this process."""
    out, err = StringIO(), StringIO()
    with (
        mock.patch("slimcore.bench.report.figures.draw", return_value=None),  # a second each, and not the matter here
        chdir(call.folder),
        mock.patch.dict(os.environ, call.env, clear=True),
        mock.patch.object(sys, "argv", ["slimcore", *call.arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    return left.value.code or 0, out.getvalue(), err.getvalue()
