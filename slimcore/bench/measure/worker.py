"""A process that measures one subject on request: it builds the model, and generates.

It serves the slimcore it was started with, which may be another version than the one that asks, in another interpreter.
Requests and answers are JSON objects over one connection; what libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.bench.measure import VERSION

if TYPE_CHECKING:
    from slimcore.bench.grid.cells import Cell
    from slimcore.bench.measure.engines import Engine
    from slimcore.bench.measure.generation import Generation
    from slimcore.bench.measure.subject import Built


BEAT = 0.5  # seconds between two reports of progress


class Server:
    """What is built and open; each public method is a request."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._device = "cpu"
        self._subject: Built | None = None
        self._engine: Engine | None = None
        self._engine_is = ""  # of which cell it is, less what does not matter to it
        self._generation: Generation | None = None
        self._canaries: dict[str, Any] = {}

    def facts(self, *, root: str, device: str, share: int, devices: str | None) -> dict[str, Any]:
        """The machine's key, its software, and what memory and speed the device has.

        Raises DeviceError where there is none.
        """
        import torch

        from slimcore.bench.measure.canary import at_hand
        from slimcore.bench.measure.machine import gpus, machine_key
        from slimcore.bench.measure.software import software
        from slimcore.errors import DeviceError

        if device == "cuda" and not torch.cuda.is_available():
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
            raise DeviceError(f"no CUDA device here (CUDA_VISIBLE_DEVICES: {seen}): -n takes as many as it has workers")
        found = at_hand(device)
        return {
            "machine": machine_key(device, share, devices),
            "software": software(Path(root), device),
            "device": vars(found) | {"memory": found.memory * (gpus(devices) if device == "cuda" else 1)},
        }

    def costs(self, *, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Label and footprint of the subjects of `cells`, from shapes alone."""
        from slimcore.bench.grid.forecast import planned

        found = planned(map(_cell, cells))
        return {"costs": [[*key, one.label, one.costs.as_dict()] for key, one in found.items()]}

    def missing(self, *, engine: str, device: str) -> dict[str, Any]:
        """Why an engine cannot run here; empty where it can."""
        from slimcore.bench.measure.engines import missing

        return {"why": missing(engine, device)}

    def build(
        self, *, cell: Mapping[str, Any], known: Mapping[str, Any] | None, devices: str | None, scores: str | None
    ) -> dict[str, Any]:
        """Build the subject of `cell`, by the plan of the record `known` where there is one; its record."""
        from dataclasses import asdict

        from slimcore.bench.measure.subject import Built
        from slimcore.bench.records.records import Subject
        from slimcore.errors import ResultsError
        from slimcore.validation import validated

        self.shut()
        wanted = _cell(cell)
        self._device = wanted.device
        before = None if known is None else validated(Subject, known, "the record of a subject", ResultsError)
        self._subject = Built(wanted, before, devices=devices, scores=Path(scores) if scores else None)
        return {"subject": asdict(self._subject.record)}

    def open(
        self, *, cell: Mapping[str, Any], lengths: Sequence[int], sample: bool, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make ready to generate `cell`; memory's peak is wanted at `lengths`, numbers of tokens."""
        from slimcore.bench.measure import engines, memory
        from slimcore.bench.measure.generation import Generation, check_context

        assert self._subject is not None
        gc.enable()
        wanted, model = _cell(cell), self._subject.model
        check_context(model, wanted)
        engine_is = wanted.engine if wanted.engine == "vllm" else wanted.id
        self._generation = None
        if self._engine is None or engine_is != self._engine_is:
            self.shut()
            memory.give_back(self._device)  # a cell finds no memory taken by the one before
            self._engine, self._engine_is = engines.start(wanted.engine, model, options), engine_is
        self._generation = Generation(model, self._engine, wanted, lengths, sample)
        gc.collect()
        gc.disable()  # while it runs
        return {}

    def run(self) -> dict[str, Any]:
        """One generate of the open cell: seconds to each token, joules; after the first, memory's peaks."""
        assert self._generation is not None
        ran = self._generation.run()
        peaks = {str(count): size for count, size in self._generation.peaks.items()}
        return {"seconds": [round(s, 9) for s in ran.seconds], "joules": ran.joules, "peaks": peaks}

    def canary(self, *, device: str) -> dict[str, Any]:
        """One reading of the canary, and the device's condition."""
        from slimcore.bench.measure.canary import Canary
        from slimcore.bench.measure.nvml import conditions

        canary = self._canaries.setdefault(device, Canary(device))
        return {"reading": canary.read(), "conditions": conditions(device)}

    def rest(self) -> dict[str, Any]:
        """Hold no memory but the model's."""
        from slimcore.bench.measure.memory import give_back

        self.shut()
        give_back(self._device)
        return {}

    def shut(self) -> None:
        """Close the engine."""
        engine, self._engine, self._generation = self._engine, None, None
        if engine is not None:
            engine.close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; out of memory and errors are answers, after which nothing is open."""
        from slimcore.bench.measure.memory import OutOfMemory, release, unless_out_of_memory
        from slimcore.errors import SlimcoreError

        works: dict[str, Callable[..., dict[str, Any]]] = {
            work.__name__: work
            for work in (self.facts, self.costs, self.missing, self.build, self.open, self.run, self.canary, self.rest)
        }
        work = works[request.pop("do")]
        try:
            return unless_out_of_memory(lambda: work(**request), self._device)
        except OutOfMemory as refusal:
            answer = {"oom": str(refusal), "kept": refusal.kept}
        except SlimcoreError as error:  # says what to do: a traceback would hide it
            answer = {"error": str(error)}
            release(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the next cell
            answer = {"error": "".join(traceback.format_exception(error)).strip()}
            release(error)
        with suppress(Exception):  # the engine is broken already, and the process will be ended
            self.shut()
        return answer

    def report(self, what: str, done: int, total: int | None) -> None:
        """Tell how far long work is, which also says that it goes on."""
        _say(self._connection, {"progress": what, "done": done, "total": total})


def serve(connection: Connection, settings: Mapping[str, Any]) -> None:
    """Answer until the other side is gone. `settings`: environment variables, cores, threads, who asks."""
    os.environ.update(settings["environment"])
    if settings["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, settings["cores"])
    if os.getsid(0) != os.getpid():
        os.setsid()  # so that all it starts can be ended with it
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    import torch

    import slimcore
    from slimcore import progress
    from slimcore.bench.measure.machine import threads

    if threads() < torch.get_num_threads():
        torch.set_num_threads(threads())
    gc.collect()
    gc.freeze()  # what was imported stays: each later collection takes a hundredth of the time
    server = Server(connection)
    progress.report_to(_throttled(server.report))
    _say(connection, {"serving": VERSION, "from": str(Path(slimcore.__file__).resolve().parent.parent)})
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            break
        _say(connection, server.answer(request))
    server.shut()


def _cell(record: Mapping[str, Any]) -> Cell:
    from slimcore.bench.grid.cells import Cell

    return Cell(**record)


def _say(connection: Connection, answer: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # who asked is gone: the next request will not come
        connection.send_bytes(json.dumps(answer).encode())


def _throttled(report: Callable[[str, int, int | None], None]) -> Callable[[str, int, int | None], None]:
    last = [0.0]

    def say(what: str, done: int, total: int | None) -> None:
        if done == 0 or time.monotonic() - last[0] > BEAT:
            last[0] = time.monotonic()
            report(what, done, total)

    return say


def _end_with(parent: int) -> None:
    """End this process, and what it started, when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Serve over the file descriptor, with the settings, that the command line names."""
    serve(Connection(int(sys.argv[1])), json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
