"""A small GitHub Actions: runs the jobs of a workflow here, each `run` by bash in a clone of a bare origin.

Programs that a step calls are stand-ins: they ask this process, which answers with a Python function.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = ROOT / ".github" / "workflows"
SUMMARY_LIMIT = 2**20  # bytes of a step, beyond which GitHub drops it
BODY_LIMIT = 65536  # characters of a pull request's text

STAND_IN = """\
#!{python} -ISE
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as asked:
    call = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
    asked.sendall(json.dumps(call).encode() + b"\\n")
    code, out, err = json.load(asked.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass(frozen=True)
class Call:
    """A stand-in was called."""

    arguments: list[str]
    folder: Path
    env: Mapping[str, str]


Program = Callable[[Call], tuple[int, str, str]]  # exit code, stdout, stderr


@dataclass
class Job:
    """What became of a job."""

    outcome: str = "success"  # or failure, skipped
    steps: list[str] = field(default_factory=list)  # outcome of each
    summary: str = ""
    log: str = ""


def git(folder: Path, *arguments: str) -> str:
    """Run git, without the settings of whoever runs the tests; its output."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=folder, env=_environment(), check=True, capture_output=True)
    return done.stdout.decode().strip()


class Runner:
    """Runs workflows against one repository."""

    def __init__(self, folder: Path, programs: Mapping[str, Program], files: Mapping[str, str]) -> None:
        """`files`: path -> text, what the repository's branch `main` holds."""
        self.folder, self.programs = folder, programs
        self.origin, self.artifacts, self.bin = folder / "origin.git", folder / "artifacts", folder / "bin"
        for made in (self.origin, self.artifacts, self.bin):
            made.mkdir(parents=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0.01)
        for name in programs:
            self.stand_in(self.bin / name)
        git(self.origin, "init", "--quiet", "--bare", "--initial-branch=main")
        self.push("first", files)

    def close(self) -> None:
        """Answer no more."""
        self.server.close()

    def stand_in(self, path: Path) -> None:
        """Put a program at `path` that asks for the answer of the stand-in of its name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(python=sys.executable, port=self.server.getsockname()[1]))
        path.chmod(0o755)

    def push(self, message: str, files: Mapping[str, str]) -> None:
        """Commit `files` to `main`, as a person does."""
        clone = self._clone("main")
        for name, text in files.items():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_text(text)
        git(clone, "add", "--all")
        git(clone, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", message)
        git(clone, "push", "--quiet", "origin", "HEAD:refs/heads/main")

    def run(self, workflow: str, *, number: int = 1, **variables: str) -> dict[str, Job]:
        """Run one workflow as run `number`: what became of each job, by its name and its place in the matrix."""
        flow, done = yaml.safe_load((WORKFLOWS / workflow).read_text()), {}
        for name, job in flow["jobs"].items():
            needed = [ran for other, ran in done.items() if other.partition(" ")[0] == job.get("needs")]
            matrix = job.get("strategy", {}).get("matrix", {})
            for values in product(*matrix.values()):
                known = {f"matrix.{key}": str(value) for key, value in zip(matrix, values, strict=True)}
                title = " ".join([name, *map(str, values)])
                if wanted(job.get("if"), failed=any(ran.outcome != "success" for ran in needed)):
                    steps = substituted(job["steps"], known | {"github.token": "secret"})
                    shell = flow.get("defaults", {}).get("run", {}).get("shell")
                    done[title] = self._job(steps, shell, number, variables)
                else:
                    done[title] = Job("skipped")
        return done

    def _job(self, steps: Sequence[Mapping[str, Any]], shell: str | None, number: int, variables: dict) -> Job:
        job, clone = Job(), self._new("workspace")
        artifacts = self.artifacts / str(number)
        variables = {"GITHUB_REF_NAME": "main", "GITHUB_RUN_ID": str(number), "GITHUB_ACTIONS": "true"} | variables
        for step in steps:
            if not wanted(step.get("if"), failed=job.outcome == "failure"):
                job.steps.append("skipped")
                continue
            if "run" in step:
                passed = self._bash(step, shell, clone, variables, job)
            else:
                passed = self._action(step["uses"].partition("@")[0], step.get("with", {}), clone, artifacts, variables)
            job.steps.append("success" if passed else "failure")
            job.outcome = job.outcome if passed else "failure"
        return job

    def _bash(self, step: Mapping[str, Any], shell: str | None, clone: Path, variables: dict, job: Job) -> bool:
        """Run a step's script as GitHub does, its variables set over those of the step."""
        place = self._new("step")
        script, log, summary = place / "script.sh", place / "log", place / "summary.md"
        script.write_text(step["run"])
        options = {None: ["-e"], "bash": ["--noprofile", "--norc", "-e", "-o", "pipefail"]}[shell]
        command = ["bash", *options, script]
        env = _environment() | step.get("env", {}) | variables | {"GITHUB_STEP_SUMMARY": str(summary)}
        env["PATH"] = f"{self.bin}:{env['PATH']}"
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=clone, env=env, stdout=file, stderr=file)
        try:
            while process.poll() is None:
                with suppress(TimeoutError):
                    self._answer(self.server.accept()[0])
        finally:
            process.kill()
            process.wait()
        job.log += log.read_text()
        if summary.exists():
            assert summary.stat().st_size <= SUMMARY_LIMIT, "GitHub drops a summary of this size"
            job.summary += summary.read_text()
        return process.returncode == 0

    def _answer(self, asked: socket.socket) -> None:
        """Answer one call of a stand-in."""
        with asked:
            asked.settimeout(10)
            name, arguments, folder, env = json.loads(asked.makefile().readline())
            asked.sendall(json.dumps(self.programs[name](Call(arguments, Path(folder), env))).encode())

    def _action(self, name: str, given: Mapping[str, Any], clone: Path, artifacts: Path, variables: dict) -> bool:
        """Do what an action of GitHub's own does; whether it succeeded."""
        match name:
            case "actions/checkout":
                whole = given.get("fetch-depth") == 0
                git(clone, "clone", "--quiet", *([] if whole else ["--depth=1"]), f"file://{self.origin}", ".")
                if "GITHUB_BASE_REF" in variables and not whole:  # a pull request alone, without its base
                    git(clone, "update-ref", "-d", "refs/remotes/origin/main")
            case "actions/setup-python":
                pass
            case "actions/upload-artifact":
                into = artifacts / given["name"]
                if into.exists() and not given.get("overwrite"):
                    return False
                shutil.rmtree(into, ignore_errors=True)
                if (clone / given["path"]).exists():  # where it does not, GitHub warns
                    shutil.copytree(clone / given["path"], into)
            case "actions/download-artifact":
                for found in artifacts.glob(given["pattern"]):
                    shutil.copytree(found, clone / given["path"] / found.name)
            case _:
                raise AssertionError(f"action {name} is not known here")
        return True

    def _clone(self, branch: str) -> Path:
        clone = self._new("clone")
        git(clone, "clone", "--quiet", f"file://{self.origin}", ".")
        git(clone, "switch", "--quiet", "--force-create", branch)
        return clone

    def _new(self, name: str) -> Path:
        path = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        path.mkdir()
        return path


def substituted(thing: Any, known: Mapping[str, str]) -> Any:
    """`thing` of YAML with every `${{ name }}` replaced. Raises KeyError for a name that is not among `known`."""
    if isinstance(thing, str):
        return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", lambda found: known[found[1]], thing)
    if isinstance(thing, dict):
        return {key: substituted(value, known) for key, value in thing.items()}
    return [substituted(value, known) for value in thing] if isinstance(thing, list) else thing


def wanted(condition: str | None, *, failed: bool) -> bool:
    """Whether a job or step runs. Raises KeyError for a condition that is not known here."""
    return {None: not failed, "always()": True, "!cancelled()": True}[condition]


def _environment() -> dict[str, str]:
    """Ours, without the settings of a runner or of git around the tests."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "GIT_", "GH_"))}
    return ours | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
