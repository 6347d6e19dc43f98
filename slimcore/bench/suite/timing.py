"""A test's own code, timed in pytest's process with the repeats, the canary and the verdict that a cell has."""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from slimcore.bench.grid.cells import Cell
from slimcore.bench.suite.lanes import OWN, Lane, Lanes
from slimcore.bench.suite.session import Session
from slimcore.bench.suite.workers import Asked
from slimcore.errors import ResultsError

SHORTEST = 2e-3  # seconds of a sample: what is shorter is called several times in one, and no clock's step shows


class Timed:
    """What a test that takes the fixture `timed` is given."""

    def __init__(self, session: Session, cell: Cell) -> None:
        self._session, self._cell = session, cell
        self._used = False

    def __call__(self, step: Callable[[], object]) -> None:
        """Time `step`, which is called many times, and fail the test where it got slower.

        What it raises fails the test as it is.
        """
        __tracebackhide__ = True
        if self._used:
            pytest.fail(f"{self._cell.id} calls timed twice: a test has one time; parametrize it, or write two tests")
        self._used = True
        here = cast(Here, self._session.lanes)
        here.step, here.raised = step, None
        verdict = self._session.measure(self._cell)
        if here.raised is not None:
            raise here.raised
        if not verdict.passes:
            pytest.fail(verdict.message, pytrace=False)


class Here(Lanes):
    """One lane, of code in this process; it has a worker too, which reads the canary."""

    step: Callable[[], object]
    raised: Exception | None = None

    def lane(self, name: str, cell: Cell) -> Lane:  # noqa: ARG002 - as Lanes
        """The lane, whose code is `step`."""
        if OWN not in self._lanes:
            self._lanes[OWN] = self._new(OWN, "")
        return Lane(_Code(self, self._lanes[OWN].worker), "")

    def make_room(self) -> None:
        """Nothing: no process is to be started."""

    def fresh(self, name: str, cell: Cell) -> Lane:
        """The same: what runs here cannot be moved to another process."""
        return self.lane(name, cell)


class _Code:
    """Stands in a worker's place, and calls the code."""

    def __init__(self, here: Here, reader: Asked) -> None:
        self._here, self._reader = here, reader
        self._calls = 1  # in a sample

    def ask(self, do: str, within: float, **arguments: Any) -> dict[str, Any]:
        """As a worker does. Raises ResultsError where the code raises."""
        __tracebackhide__ = True
        if do == "canary":
            return self._reader.ask(do, within, **arguments)
        if do == "open":
            gc.collect()
            return {}
        try:
            with _alone(self._here.machine.settings.cores):
                seconds = self._sample()
        except Exception as error:
            self._here.raised = error
            raise ResultsError(f"{type(error).__name__}: {error}") from error
        return {"seconds": [seconds], "joules": None, "peaks": {}}

    def close(self) -> None:
        """Nothing: the worker is the lanes'."""

    def _sample(self) -> float:
        """Seconds of one call, over as many as a sample has."""
        __tracebackhide__ = True
        step, calls = self._here.step, self._calls
        _wait_for_gpu()
        began = time.perf_counter()
        for _ in range(calls):
            step()
        _wait_for_gpu()
        took = time.perf_counter() - began
        if took < SHORTEST / 2:
            self._calls = math.ceil(calls * SHORTEST / max(took, 1e-9))
        return took / calls


@contextmanager
def _alone(cores: Sequence[int]) -> Iterator[None]:
    """Without garbage collection, and on these cores, where it is not all."""
    collecting, before = gc.isenabled(), os.sched_getaffinity(0) if cores and hasattr(os, "sched_setaffinity") else None
    gc.disable()
    try:
        if before is not None:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
        if collecting:
            gc.enable()


def _wait_for_gpu() -> None:
    """Where the code has begun to use one: what it launches goes on after it has returned."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
