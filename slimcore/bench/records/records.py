"""The lines of a run, typed: how it was started, what was built, what was begun, what was measured. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from slimcore.bench.grid.cells import Cell, Key
from slimcore.bench.statistics import level, summarise
from slimcore.cost import Footprint
from slimcore.errors import ResultsError
from slimcore.validation import Strict

SCHEMA = "slimcore.results/4"

Status = Literal["ok", "oom", "error"]
Fact = str | int | float | bool | None  # of software and conditions


def dense_of(subject: Key) -> str:
    """Names the dense model that a subject is cut from, whose weights a run and a night tell: `model/dtype`."""
    return f"{subject[0]}/{subject[2]}"


@dataclass(frozen=True)
class Costs(Strict, Footprint):
    """What a subject costs, counted without a clock."""

    operator_calls_per_token: int


@dataclass(frozen=True)
class Quality(Strict):
    """A perplexity, and what it was measured on."""

    value: float | None  # None where it is beyond any float
    predictions: int
    tokens: dict[str, Any]


@dataclass(frozen=True)
class Subject(Strict):
    """A model that was built to be measured: dense, or cut by a method."""

    model: str
    method: str
    dtype: str
    label: str  # in figures
    weights: str  # hash of the dense model's weights, or of its shape where they are random
    costs: Costs
    counted_by: str  # versions that the number of operators depends on
    perplexity: Quality | None = None  # None where the model has no text, or it was beyond any float
    plan: dict[str, Any] | None = None
    seconds: float = 0.0  # building it
    other: bool = False  # of the version that is measured beside this one

    @property
    def key(self) -> Key:
        """As a cell's `subject`."""
        return self.model, self.method, self.dtype

    @property
    def name(self) -> str:
        """As tables and files have it."""
        return "/".join(self.key)


@dataclass(frozen=True)
class Times(Strict):
    """Latencies that one process measured, and what the machine was like."""

    latency_s: tuple[float, ...] = ()  # one whole generate each
    canary: tuple[float, float] | None = None  # middle of the canary's readings and its error, in logarithms
    host: float | None = None  # of a GPU's host, launching, in logarithms

    def __post_init__(self) -> None:
        """Raise ResultsError for what no clock reads."""
        if not all(seconds > 0 for seconds in self.latency_s):
            raise ResultsError(f"latency_s must be positive seconds (got {min(self.latency_s)})")

    @classmethod
    def of(cls, latency_s: Sequence[float], readings: Iterable[Sequence[float]]) -> Times:
        """Latencies with the canary's readings about them: the middle of these and its error.

        A reading is the seconds of a product, a copy and, on a GPU, of launches; an empty one could not be read.
        """
        read = [[math.log(seconds) for seconds in reading] for reading in readings if reading]
        if not read:
            return cls(tuple(latency_s))
        canary = level([fmean(reading[:2]) for reading in read])
        launches = [seconds for _, _, *more in read for seconds in more]
        host = round(level(launches).centre, 6) if launches else None
        return cls(tuple(latency_s), (round(canary.centre, 6), round(canary.error, 6)), host)


@dataclass(frozen=True)
class Pairs(Strict):
    """Latencies of two that were measured in turn: the n-th of one beside the n-th of the other."""

    own_s: tuple[float, ...]
    other_s: tuple[float, ...]


@dataclass(frozen=True)
class Against(Strict):
    """The other version of a cell, measured in turn with this one."""

    status: Status
    detail: str = ""
    pairs: Pairs = Pairs((), ())
    fresh: tuple[Pairs, ...] = ()  # in fresh pairs of processes, where the cell was suspect
    pooled: float = 0.0  # standard deviation of one pair's log ratio, over the cells so far
    process: float = 0.0  # and from one pair of processes to another


@dataclass(frozen=True)
class Measurement(Strict):
    """One cell, measured."""

    cell: Cell
    status: Status
    detail: str = ""  # why it did not run
    times: Times = Times()
    ttft_s: tuple[float, ...] = ()  # to the first token, of each generate of `times`
    tpot_s: tuple[float, float, float] | None = None  # a token after the first: 50th, 90th, 99th percentile
    warmup_s: tuple[float, ...] = ()
    readings: tuple[tuple[float, ...], ...] = ()  # of the canary, before and after: see Canary
    peak_bytes: int | None = None  # CUDA: allocated; CPU: resident set of the process; None where it cannot be read
    joules: float | None = None  # a generated token, all rows counted; None where the device does not say
    conditions: Mapping[str, Fact] | None = None  # of the device: clocks, temperature, throttling
    fresh: tuple[Times, ...] = ()  # in fresh processes, where the cell was suspect
    dense: Pairs | None = None  # in turn with the dense model; None where both do not fit, or it is dense itself
    against: Against | None = None
    ended: float = 0.0  # seconds since the epoch
    spent_s: float = 0.0  # all that was done for it since the cell before

    @property
    def id(self) -> str:
        """The cell's."""
        return self.cell.id

    @property
    def ran(self) -> bool:
        """Whether it has a time."""
        return self.status == "ok"

    @property
    def latency(self) -> float:
        """The median, in seconds. Raises ValueError where it did not run."""
        return summarise(self.times.latency_s).centre

    @property
    def throughput(self) -> float:
        """Generated tokens a second, all rows together, at the median latency."""
        return self.cell.batch * self.cell.output_tokens / self.latency


@dataclass(frozen=True)
class Begun(Strict):
    """A cell is about to be measured: where nothing of it follows, it took its process, or the machine, down."""

    cell: str
    at: float


@dataclass(frozen=True)
class Start(Strict):
    """How a run was started, or gone on with."""

    schema: str
    grid: str
    device: str
    machine: str
    started: str
    software: Mapping[str, Fact]
    cells: tuple[str, ...]  # ids of those that were asked for
    grid_cells: tuple[str, ...]  # and of all of the grid
    shard: str | None = None  # k/n
    against: str | None = None  # the version that is measured beside this one
    aa: int | None = None  # this version against itself, so many times
    devices: str | None = None  # `auto`: models are spread over the GPUs
    detect: float | None = None
    strict: bool = False
    budget: float | None = None  # seconds; the cells that were left out for it are to be measured another time
    mixed: bool = False  # gone on with in spite of another commit or other versions: never a night


Line = Start | Subject | Begun | Measurement
KINDS: dict[str, type[Line]] = {"run": Start, "subject": Subject, "begun": Begun, "cell": Measurement}
