"""A process that measures on request: `python -m slimcore.bench.measure.worker [DEVICES]`, one JSON line in, one out.

It measures the slimcore it was started with, which may be another version than the one that asks.
Requests: `open` (a cell: build its subject, warm up), `time` (one whole generate), `canary` (one reading), `measure` (a
cell, all of it).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimcore.bench.grid.cells import Cell

VERSION = 1  # of the requests and answers


class Server:
    """What is open, and what can be asked."""

    def __init__(self, devices: str | None = None) -> None:
        from slimcore.bench.measure.canary import Canary
        from slimcore.bench.measure.subject import Subjects

        self._canaries: dict[str, Canary] = {}
        self._subjects = Subjects(devices=devices)
        self._generation: Any = None
        self._device = "cpu"

    def open(self, *, cell: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
        """Build the subject of `cell`, by the plan of the record `known` where there is one, and warm up."""
        from slimcore.bench.measure.timing import PAPER, Generation, Protocol

        wanted = self._cell(cell)
        self._generation = None
        if known is not None:
            self._subjects.know(known)
        subject = self._subjects.get(wanted)
        self._generation = Generation(subject.model, wanted, PAPER if wanted.protocol == "paper" else Protocol())
        warmup: list[float] = []
        self._generation.warm_up(warmup)
        return {"subject": subject.record, "warmup_s": warmup}

    def measure(
        self, *, cell: dict[str, Any], known: dict[str, Any] | None, protocol: dict[str, Any]
    ) -> dict[str, Any]:
        """The subject of `cell` and its whole timing."""
        from slimcore.bench.measure.canary import Canary
        from slimcore.bench.measure.timing import Protocol, measure

        wanted = self._cell(cell)
        if known is not None:
            self._subjects.know(known)
        subject = self._subjects.get(wanted)
        pairs: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in protocol.items()}
        how = Protocol(**pairs)
        timing = measure(subject.model, wanted, how, Canary(wanted.device))
        return {"subject": subject.record, "timing": timing.as_dict()}

    def _cell(self, cell: dict[str, Any]) -> Cell:
        from slimcore.bench.grid.cells import Cell

        wanted = Cell(**{f.name: cell[f.name] for f in fields(Cell) if f.name in cell})
        self._device = wanted.device
        return wanted

    def time(self) -> dict[str, Any]:
        """Seconds of one whole generate of the open cell."""
        return {"seconds": self._generation.whole()}

    def canary(self) -> dict[str, Any]:
        """One reading of the canary."""
        from slimcore.bench.measure.canary import Canary

        canary = self._canaries.setdefault(self._device, Canary(self._device))
        return {"canary_s": canary.read()}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; out of memory and errors are answers."""
        from slimcore.bench.measure.timing import quiet, unless_out_of_memory

        works: dict[str, Callable[..., dict[str, Any]]]
        works = {"open": self.open, "measure": self.measure, "time": self.time, "canary": self.canary}
        work = works[request.pop("do")]

        def measured() -> dict[str, Any]:
            # Building a subject may take gradients: only timing is quiet.
            if work == self.time:
                with quiet():
                    return work(**request)
            return work(**request)

        try:
            answer, refusal = unless_out_of_memory(measured, self._device)
        except Exception as error:  # noqa: BLE001 - the one who asks decides
            return {"error": "".join(traceback.format_exception(error)).strip()}
        if answer is None:
            self._generation = None
            self._subjects.drop()
            return {"oom": refusal.words}
        return answer


def main() -> None:
    """Answer until the other side is gone. What libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    import slimcore

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    devices = sys.argv[1] if len(sys.argv) > 1 else None
    server = Server(devices)
    say({"serving": VERSION, "from": str(Path(slimcore.__file__).resolve().parent.parent), "devices": devices})
    for line in sys.stdin:
        say(server.answer(json.loads(line)))


if __name__ == "__main__":
    main()
