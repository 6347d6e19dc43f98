"""Which workers are alive, and what each holds: a subject for a cell, the dense model beside it, another version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slimcore.bench.grid import forecast
from slimcore.bench.grid.cells import Cell, Key
from slimcore.bench.grid.limit import Device
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.records.records import Fact, Subject
from slimcore.bench.records.results import Run
from slimcore.bench.suite.workers import HERE, Asked, Report, Settings, Worker
from slimcore.cost import Footprint
from slimcore.errors import ResultsError
from slimcore.validation import validated

PATIENCE = 10.0  # times what is forecast that a step may take
LEAST = 60.0  # seconds that it may take at least
OWN, DENSE, OTHER = "own", "dense", "other"  # lanes


@dataclass(frozen=True)
class Machine:
    """What workers are told, and how long they are waited for."""

    device: str
    devices: str | None = None  # `auto` spreads a model over the GPUs
    share: int = 1  # how many measure at once
    settings: Settings = field(default_factory=Settings)
    pythons: Mapping[str, str] = field(default_factory=dict)  # engine -> the interpreter that has it
    options: Mapping[str, Any] = field(default_factory=dict)  # of the engine vllm
    patience: float = PATIENCE


@dataclass
class Lane:
    """A worker, and what it holds."""

    worker: Asked
    python: str  # its interpreter; empty: ours
    subject: Subject | None = None


class Lanes:
    """The workers of a run: started when they are needed, ended when their subject is not."""

    def __init__(self, run: Run, machine: Machine, protocol: Protocol, roots: Mapping[str, tuple[Path, str]]) -> None:
        """`roots`: by lane, the folder of the slimcore that runs there, and its Python; ours where none is given."""
        self.machine, self._run, self._protocol, self._roots = machine, run, protocol, roots
        self._lanes: dict[str, Lane] = {}
        self._spare: Asked | None = None  # started to be asked for facts, and not used yet
        self._scores = TemporaryDirectory(prefix="slimcore-scores-")
        self.device: Device | None = None
        self.report: Report = lambda *_: None
        self.building: Callable[[], AbstractContextManager[None]] = nullcontext  # around the long work before a cell

    def facts(self, root: Path, engine: str = "") -> tuple[str, dict[str, Fact]]:
        """The machine's key, and its software, as a worker for `engine` finds them."""
        worker, machine = self._new(OWN, engine).worker, self.machine
        told = worker.ask(
            "facts", LEAST * PATIENCE, root=str(root), device=machine.device, share=machine.share,
            devices=machine.devices,
        )  # fmt: skip
        if engine in self.machine.pythons:
            worker.close()
        else:
            self._spare, self.device = worker, Device(**told["device"])
        return str(told["machine"]), dict(told["software"])

    def missing(self, engine: str) -> str:
        """Why `engine` cannot run here; empty where it can."""
        if engine != "vllm":
            return ""
        worker = self._new(OWN, engine).worker
        try:
            return str(worker.ask("missing", LEAST * PATIENCE, engine=engine, device=self.machine.device)["why"])
        finally:
            worker.close()

    def lane(self, name: str, cell: Cell) -> Lane:
        """The lane of that name with the subject of `cell`, built if it is not; a new subject is written down.

        Raises Refused where it does not fit, ResultsError where it cannot be built.
        """
        if self._holds(name, cell):
            return self._lanes[name]
        if name == DENSE and self._holds(OWN, cell):  # it was measured just now, and stays beside those that follow
            self._lanes[DENSE] = self._lanes.pop(OWN)
            self.rest(DENSE)
            return self._lanes[DENSE]
        self.close(name)
        self._lanes[name] = lane = self._new(name, cell.engine)
        self._build(lane, name, cell)
        return lane

    def fresh(self, name: str, cell: Cell) -> Lane:
        """A lane that nobody else has, with the subject of `cell`: its caller closes its worker."""
        lane = self._new(name, cell.engine)
        try:
            self._build(lane, name, cell)
        except BaseException:
            lane.worker.close()
            raise
        return lane

    def open(self, lane: Lane, cell: Cell, lengths: tuple[int, ...]) -> None:
        """Make a lane ready to generate `cell`. Raises as `Worker.ask` does."""
        lane.worker.ask(
            "open", self.patience(cell, lane, once=True), cell=asdict(cell), lengths=lengths,
            sample=self._protocol.sample, options=dict(self.machine.options) if cell.engine == "vllm" else {},
        )  # fmt: skip

    def patience(self, cell: Cell, lane: Lane, *, once: bool = False) -> float:
        """Seconds that one generate of `cell` may take; `once`: the first one, which may compile."""
        if lane.subject is None or self.device is None:
            return LEAST * PATIENCE
        (expected,) = forecast.forecast([cell], {cell.subject: lane.subject}, self.device, self._protocol)
        seconds = expected.seconds + (forecast.once(cell, lane.subject.costs.layers) if once else 0.0)
        return max(LEAST, self.machine.patience * seconds)

    def has_room(self, needed: int) -> bool:
        """Whether so many bytes fit into one device, with a tenth to spare."""
        return self.device is not None and not self.machine.devices and 1.1 * needed < self.device.memory

    def rest(self, name: str) -> None:
        """Have a lane hold no memory but its model's."""
        if name in self._lanes:
            self._lanes[name].worker.ask("rest", LEAST * PATIENCE)

    def planned(self, cells: Sequence[Cell]) -> dict[Key, forecast.Planned]:
        """The subjects of `cells`, counted from their shapes."""
        lane = self._new(OWN, "")
        told = lane.worker.ask("costs", LEAST * PATIENCE, cells=[asdict(cell) for cell in cells])["costs"]
        self._spare = lane.worker
        return {(m, how, dtype): forecast.Planned(label, Footprint(**cost)) for m, how, dtype, label, cost in told}

    def make_room(self) -> None:
        """Before fresh processes are started: they need the memory."""
        self.close()

    def close(self, *names: str) -> None:
        """End the workers of these lanes; of all, where none is named."""
        for name in names or tuple(self._lanes):
            if (lane := self._lanes.pop(name, None)) is not None:
                lane.worker.close()

    def end(self) -> None:
        """End all."""
        self.close()
        if self._spare is not None:
            self._spare.close()
        self._scores.cleanup()

    def _python(self, name: str, engine: str) -> str:
        return self.machine.pythons.get(engine, self._roots.get(name, (HERE, ""))[1])

    def _holds(self, name: str, cell: Cell) -> bool:
        """Whether the lane has the subject of `cell`, in the interpreter that the cell wants."""
        lane = self._lanes.get(name)
        built = lane is not None and lane.subject is not None and lane.subject.key == cell.subject
        return built and self._lanes[name].python == self._python(name, cell.engine)

    def _new(self, name: str, engine: str) -> Lane:
        """A lane whose worker serves, and has built nothing."""
        root, python = self._roots.get(name, (HERE, ""))[0], self._python(name, engine)
        if self._spare is not None and not python and root == HERE:
            spare, self._spare = self._spare, None
            return Lane(spare, python)
        worker = Worker(python, root, self.machine.settings)
        worker.report = self._told
        try:
            worker.greet()
        except ResultsError:
            worker.close()
            raise
        return Lane(worker, python)

    def _told(self, what: str, done: int, total: int | None) -> None:
        """Pass progress on to whom it is for now, who may have come after the worker."""
        self.report(what, done, total)

    def _build(self, lane: Lane, name: str, cell: Cell) -> None:
        """Build the subject of `cell` there, by the plan that is known."""
        other = name == OTHER
        ours, theirs = self._run.subjects.get(cell.subject), self._run.others.get(cell.subject)
        known = theirs or (ours if self._roots.get(OTHER, (HERE, ""))[0] == HERE else None) if other else ours
        with self.building():
            answer = lane.worker.ask(
                "build", LEAST * self.machine.patience, cell=asdict(cell), known=known and asdict(known),
                devices=self.machine.devices, scores=None if other else self._scores.name,
            )  # fmt: skip
        found = validated(Subject, answer["subject"], "a worker's subject", ResultsError)
        lane.subject = replace(found, other=other)
        if (theirs if other else ours) is None:
            self._run.append(lane.subject)
