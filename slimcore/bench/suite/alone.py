"""Measuring cells in this process, and suspects again in fresh ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.gate import PROCESSES, canary_levels
from slimcore.bench.measure.canary import Canary
from slimcore.bench.measure.environment import conditions
from slimcore.bench.measure.subject import Subjects
from slimcore.bench.measure.timing import SLACK, Timing, allocated, give_back, measure, unless_out_of_memory
from slimcore.bench.suite.remote import HERE, Refused, Remote

if TYPE_CHECKING:
    from slimcore.bench.measure.timing import Protocol
    from slimcore.bench.records.results import Record, Run


READINGS = 20  # of the canary, the latest: one alone is noisier than a cell


class Alone:
    """One version on one machine, to be judged against its accepted nights."""

    def __init__(self, run: Run, protocol: Protocol, device: str, devices: str | None = None) -> None:
        self._run, self._protocol = run, protocol
        self._device, self._devices, self._canary = device, devices, Canary(device)
        self._readings: deque[list[float]] = deque(maxlen=READINGS)
        self._tainted = False  # something holds device memory that nothing should
        self.subjects = Subjects(dict(run.subjects), devices)
        self.building: Callable[[], AbstractContextManager[None]] = nullcontext  # around the long work before a cell

    def measure(self, cell: Cell, write: Callable[[Record], None]) -> Record:
        """The figures of `cell`; `write` takes the record of a subject that is new."""
        if self._tainted:
            return self._elsewhere(cell, write)
        with nullcontext() if self.subjects.holds(cell) else self.building():
            subject, refusal = unless_out_of_memory(lambda: self.subjects.get(cell), cell.device)
        if subject is None:
            self.subjects.drop()
            return Timing("oom", f"the model itself does not fit: {refusal.words}").as_dict()
        if cell.subject not in self._run.subjects:
            write({"kind": "subject"} | subject.record)
        while len(self._readings) < READINGS // 2:
            self._readings.append(self._canary.read())
        timing = measure(subject.model, cell, self._protocol, self._canary)
        if timing.kept_bytes:
            del subject
            self.drop()
        self._readings.extend(timing.canary_s)
        return timing.as_dict() | canary_levels(self._readings) | {"conditions": conditions(cell.device)}

    def again(self, cell: Cell, record: Record) -> Record:
        """Samples and canary of `cell` in fresh processes, one after the other; as many samples in each as before."""
        # The fresh process needs the memory, and the model would be loaded anew for another one.
        self.drop()
        known = self._run.subjects.get(cell.subject)
        count = self._protocol.again(record["latency_s"])
        fresh: list[dict[str, Any]] = []
        readings: list[list[float]] = []
        for _ in range(PROCESSES):
            with Remote(HERE, self._devices) as process:
                process.open(cell.as_dict(), known)
                readings += [process.canary() for _ in range(READINGS // PROCESSES)]
                fresh.append({"latency_s": [round(process.time(), 9) for _ in range(count)]})
                readings += [process.canary() for _ in range(READINGS // PROCESSES)]
        canary = canary_levels(readings)
        return {"fresh": [one | canary for one in fresh]}

    def drop(self) -> None:
        """Forget the model that is held, and give its memory back; where that fails, no more is measured in here."""
        self.subjects.drop()
        try:
            give_back(self._device)
            self._tainted = allocated(self._device) > SLACK
        except RuntimeError:  # a device-side assert has poisoned the process's CUDA context
            self._tainted = True

    def _elsewhere(self, cell: Cell, write: Callable[[Record], None]) -> Record:
        """Measure `cell` in a process of its own: this one's memory is not what it should be."""
        known = self._run.subjects.get(cell.subject)
        with Remote(HERE, self._devices) as process:
            try:
                subject, timing = process.measure(cell.as_dict(), known, asdict(self._protocol))
            except Refused as refused:
                return Timing("oom", f"in a fresh process: {refused}").as_dict()
        if known is None:
            write({"kind": "subject"} | subject)
        return timing | canary_levels(timing["canary_s"]) | {"conditions": conditions(cell.device)}

    def close(self) -> None:
        """Nothing is held beyond the process."""
