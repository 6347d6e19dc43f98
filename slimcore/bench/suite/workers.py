"""A worker as the suite sees it: started, asked within a deadline, ended with all that it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from slimcore.bench.measure import VERSION
from slimcore.bench.measure.machine import cores, own_gpu
from slimcore.errors import ResultsError

HERE = Path(__file__).resolve().parent.parent.parent.parent  # of the slimcore that runs
STARTING = 600.0  # seconds that a process may take to import what it needs
LAST_WORDS = 12  # lines of its stderr

Report = Callable[[str, int, int | None], None]


class Refused(Exception):  # noqa: N818 - a result
    """The worker answered that memory ran out; `kept`: whether some did not come back."""

    def __init__(self, words: str, *, kept: bool) -> None:
        super().__init__(words)
        self.kept = kept


@dataclass(frozen=True)
class Settings:
    """What a worker is given."""

    environment: Mapping[str, str] = field(default_factory=dict)  # variables
    cores: Sequence[int] = ()  # to stay on; empty: all


def share(device: str, slot: int, workers: int) -> Settings:
    """What the processes that measure for the `slot`-th of `workers` are given: one GPU, or its share of the cores.

    Raises ResultsError where there is no core for it.
    """
    if device == "cuda":
        return Settings({"CUDA_VISIBLE_DEVICES": own_gpu(slot, os.environ.get("CUDA_VISIBLE_DEVICES"))})
    every = cores()
    mine = every[len(every) * slot // workers : len(every) * (slot + 1) // workers]
    if not mine:
        raise ResultsError(f"-n {workers} on {len(every)} cores: times of cells that share a core say nothing; use -n"
                           f" {len(every)} or less")  # fmt: skip
    return Settings({"OMP_NUM_THREADS": str(len(mine))}, mine)


class Asked(Protocol):
    """What measures on request: a Worker, or what stands in its place."""

    def ask(self, do: str, within: float, **arguments: Any) -> dict[str, Any]:
        """The answer."""

    def close(self) -> None:
        """End it."""


class Process(Protocol):
    """As subprocess.Popen."""

    pid: int

    def wait(self) -> int:
        """Its exit code."""


def launch(python: str, root: Path, settings: Settings, connection: Connection, errors: IO[bytes]) -> Process:
    """Start the worker of the slimcore below `root`, in a session of its own; it holds the other end."""
    inherited = [p for p in [os.environ.get("PYTHONPATH")] if p]
    return subprocess.Popen(  # noqa: S603 - our own module
        # -P: the folder we are in, where paths of models begin, holds perhaps another slimcore.
        [python, "-P", "-m", "slimcore.bench.measure.worker", str(connection.fileno()), json.dumps(asdict(settings))],
        env=os.environ | settings.environment | {"PYTHONPATH": os.pathsep.join([str(root), *inherited])},
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        start_new_session=True,
    )


class Worker:
    """One process that measures one subject."""

    def __init__(self, python: str = "", root: Path = HERE, settings: Settings | None = None) -> None:
        """Start it: `python`, or our own, runs the slimcore below `root`; `greet` waits until it serves."""
        self.report: Report = lambda *_: None  # takes the progress of long work
        self._root = root
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._connection, theirs = Pipe()
        self._process = launch(python or sys.executable, root, settings or Settings(), theirs, self._errors)
        theirs.close()

    def greet(self) -> None:
        """Wait until it serves. Raises ResultsError where it cannot be asked what this version asks."""
        hello = self._read(STARTING)
        if hello.get("serving") != VERSION or Path(hello["from"]) != self._root.resolve():
            raise ResultsError(f"{self._root} answered {hello}: it does not hold the slimcore that was to be measured")

    def ask(self, do: str, within: float, **arguments: Any) -> dict[str, Any]:
        """The answer to a request, or to its next report of progress within so many seconds.

        Raises Refused where memory runs out there, ResultsError for any other failure: also where it died, or gave no
        sign of life for so long, and was ended.
        """
        try:
            self._connection.send_bytes(json.dumps({"do": do} | arguments).encode())
        except OSError:
            raise self._died() from None
        answer = self._read(within)
        if "oom" in answer:
            raise Refused(answer["oom"], kept=bool(answer["kept"]))
        if "error" in answer:
            raise ResultsError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, and all that it started."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            for process in (*own.children(recursive=True), own):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._connection.close()
        self._errors.close()

    def _read(self, within: float) -> dict[str, Any]:
        due = time.monotonic() + within
        while self._connection.poll(max(0.0, due - time.monotonic())):
            try:
                answer = dict(json.loads(self._connection.recv_bytes()))
            except (EOFError, ConnectionError):
                raise self._died() from None
            if "progress" not in answer:
                return answer
            self.report(answer["progress"], answer["done"], answer["total"])
            due = time.monotonic() + within
        words = f"a measuring process gave no sign of life for {within:.0f} s, and was ended"
        raise ResultsError("\n".join([f"{words} (--perf-deadline allows more):", *self._last_words()]))

    def _died(self) -> ResultsError:
        code = self._process.wait()
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ResultsError("\n".join([f"a measuring process {how}:", *self._last_words()]))

    def _last_words(self) -> list[str]:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().splitlines()[-LAST_WORDS:]
