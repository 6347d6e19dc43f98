"""Processes that measure for this one: started, asked, stopped; and the checkout of another version."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slimcore.bench.measure.worker import VERSION
from slimcore.errors import ResultsError

HERE = Path(__file__).resolve().parent.parent.parent  # of the slimcore that runs


class Refused(Exception):  # noqa: N818 - not an error of ours
    """The other process answered that memory ran out."""


class Remote:
    """One process of `slimcore.bench.measure.worker`, running the slimcore below `root`.

    Where `root` has a virtual environment `.venv`, and is not where we run ourselves, its Python is used. `devices`:
    `auto` spreads its models over the GPUs.
    """

    def __init__(self, root: Path, devices: str | None = None) -> None:
        """Start it; `greet` waits until it serves."""
        self._root, self._devices = root, devices
        own = root / ".venv" / "bin" / "python"
        python = str(own) if own.exists() and root.resolve() != HERE else sys.executable
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            # -P: the folder we are in, where paths of models begin, holds perhaps another slimcore.
            [python, "-P", "-m", "slimcore.bench.measure.worker", *([devices] if devices else [])],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *_inherited()])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def greet(self) -> Self:
        """Wait until it serves. Raises ResultsError where that version cannot."""
        hello = self._read()
        if hello.get("serving") != VERSION or Path(hello["from"]) != self._root.resolve():
            raise ResultsError(f"{self._root} answered {hello}: it does not hold the slimcore that was to be measured")
        if hello.get("devices") != self._devices:
            raise ResultsError(f"the slimcore of {self._root} cannot spread a model: leave --perf-devices out")
        return self

    def open(self, cell: dict[str, Any], known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Build the cell's subject there and warm up; its record. Raises Refused where memory runs out."""
        return dict(self._ask({"do": "open", "cell": cell, "known": known})["subject"])

    def measure(
        self, cell: dict[str, Any], known: dict[str, Any] | None, protocol: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The record of the cell's subject and the cell's whole timing. Raises Refused where memory runs out."""
        answer = self._ask({"do": "measure", "cell": cell, "known": known, "protocol": protocol})
        return dict(answer["subject"]), dict(answer["timing"])

    def time(self) -> float:
        """Seconds of one whole generate of the open cell. Raises Refused where memory runs out."""
        return float(self._ask({"do": "time"})["seconds"])

    def canary(self) -> list[float]:
        """One reading of the canary."""
        return list(self._ask({"do": "canary"})["canary_s"])

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        try:
            return self.greet()
        except ResultsError:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        answer = self._read()
        if "oom" in answer:
            raise Refused(answer["oom"])
        if "error" in answer:
            raise ResultsError(f"a measuring process failed:\n{answer['error']}")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._died()
        return dict(json.loads(line))

    def _died(self) -> ResultsError:
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-12:]
        return ResultsError("\n".join([f"a measuring process ended with exit code {code}:", *tail]))


def start(roots: Sequence[Path], devices: str | None = None) -> tuple[Remote, ...]:
    """Processes that serve, one a root, started side by side. Raises ResultsError where one cannot."""
    processes = tuple(Remote(root, devices) for root in roots)
    try:
        return tuple(process.greet() for process in processes)
    except ResultsError:
        for process in processes:
            process.close()
        raise


def checkout(root: Path, version: str, into: Path) -> tuple[Path, str]:
    """The folder that holds `version`, and its name: a folder as it is, a git ref of `root` unpacked below `into`.

    Raises ResultsError where it is neither, or holds a slimcore that cannot be measured beside this one.
    """
    folder = Path(version)
    if folder.is_dir():
        found, name = folder.resolve(), str(version)
    else:
        resolved = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{version}^{{commit}}")
        if resolved.returncode:
            raise ResultsError(f"{version!r} is neither a folder nor a git ref of {root}")
        commit = resolved.stdout.decode().strip()
        archive = _git(root, "archive", "--format=tar", commit, "slimcore")
        if archive.returncode:
            raise ResultsError(f"git archive {version}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(into, filter="data")
        found, name = into.resolve(), f"{version} ({commit[:12]})"
    if not (found / "slimcore" / "bench" / "serve.py").exists():
        raise ResultsError(f"{version} has no slimcore/bench/serve.py: only versions from it on are measured in turn")
    return found, name


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(  # noqa: S603 - a ref is one argument, and never an option
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git from the user's own PATH
            capture_output=True,
            check=False,
            timeout=120,
        )
    except OSError as error:
        raise ResultsError(f"git is needed to measure against a ref: {error}") from None


def _inherited() -> list[str]:
    return [p for p in [os.environ.get("PYTHONPATH")] if p]
