"""Generating in turn: one cell, or two beside each other, until the times are tight or the time is used."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from slimcore.bench.grid.cells import Cell
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.records.records import Fact, Measurement, Pairs, Times
from slimcore.bench.suite.lanes import LEAST, PATIENCE, Lane, Lanes
from slimcore.bench.suite.workers import Refused

READINGS = 20  # of the canary, the latest: one alone is noisier than a cell


@dataclass(frozen=True)
class Runs:
    """Generates of one cell by one worker."""

    seconds: tuple[tuple[float, ...], ...]  # of each, to each token
    warmup_s: tuple[float, ...]
    peaks: dict[int, int]
    joules: float | None  # of all of `seconds`

    @property
    def latency_s(self) -> tuple[float, ...]:
        """Of each whole generate."""
        return tuple(run[-1] for run in self.seconds)


@dataclass(frozen=True)
class RefusedOneError(Exception):
    """Memory ran out in the worker of that number."""

    number: int
    refused: Refused


class Turns:
    """Takes turns, and reads the canary around them."""

    def __init__(self, lanes: Lanes, protocol: Protocol) -> None:
        self._lanes, self.protocol = lanes, protocol
        self._readings: deque[list[float]] = deque(maxlen=READINGS)

    def take(
        self,
        beside: Sequence[tuple[Lane, Cell]],
        lengths: tuple[int, ...],
        protocol: Protocol | None = None,
        *,
        warm: bool = False,
    ) -> list[Runs]:
        """The runs of each of `beside`, as many of one as of the other, the order changing from turn to turn.

        `warm`: the second one was measured by itself before, so that one warm-up is enough.

        Raises RefusedOneError where memory runs out, ResultsError where a worker fails.
        """
        protocol, count = protocol or self.protocol, len(beside)
        peaks: list[dict[int, int]] = [{} for _ in beside]
        warmups: list[list[float]] = [[] for _ in beside]
        seconds: list[list[tuple[float, ...]]] = [[] for _ in beside]
        joules: list[list[float | None]] = [[] for _ in beside]

        def run(number: int, *, once: bool = False) -> tuple[tuple[float, ...], float | None]:
            lane, cell = beside[number]
            try:
                if once:
                    self._lanes.open(lane, cell, lengths if number == 0 else ())
                answer = lane.worker.ask("run", self._lanes.patience(cell, lane, once=once))
            except Refused as refused:
                raise RefusedOneError(number, refused) from None
            peaks[number] = {int(length): size for length, size in answer["peaks"].items()}
            return tuple(answer["seconds"]), answer["joules"]

        for number in range(count):
            while protocol.wants_warming(warmups[number]) and not (warm and number and warmups[number]):
                warmups[number].append(run(number, once=not warmups[number])[0][-1])
        spent = 0.0
        while protocol.wants_more(_series(seconds), spent):
            order = range(count) if len(seconds[0]) % 2 == 0 else range(count - 1, -1, -1)
            for number in order:
                ran, used = run(number)
                seconds[number].append(ran)
                joules[number].append(used)
                spent += ran[-1]
        return [
            Runs(tuple(seconds[n]), tuple(warmups[n]), peaks[n],
                 None if None in joules[n] else math.fsum(j for j in joules[n] if j is not None))
            for n in range(count)
        ]  # fmt: skip

    def canary(self, lane: Lane, device: str, *, times: int = 1) -> tuple[list[list[float]], dict[str, Fact]]:
        """Readings of the canary, by a lane's worker, and the device's condition at the last."""
        answers = [lane.worker.ask("canary", LEAST * PATIENCE, device=device) for _ in range(times)]
        readings = [answer["reading"] for answer in answers if answer["reading"]]
        return readings, answers[-1]["conditions"]

    def measured(self, cell: Cell, lengths: tuple[int, ...], lane: Lane, dense: tuple[Lane, Cell] | None
                 ) -> dict[int, Measurement]:  # fmt: skip
        """By number of output tokens, `cell` of each of `lengths`, its own the most; in turn with `dense`, if given."""
        first = READINGS // 2 if not self._readings else 1
        before, _ = self.canary(lane, cell.device, times=first)
        runs = self.take([(lane, cell), *([dense] if dense else [])], lengths, warm=True)
        after, conditions = self.canary(lane, cell.device)
        self._readings.extend([*before, *after])
        whole = Measurement(
            cell, "ok", warmup_s=runs[0].warmup_s, readings=tuple(map(tuple, (*before[-1:], *after))),
            conditions=conditions or None,
        )  # fmt: skip
        found = {}
        for length in lengths:
            own, *others = [cut_to(one, length) for one in runs]
            tokens = cell.batch * cell.output_tokens * len(own.seconds)
            found[length] = replace(
                whole,
                cell=replace(cell, output_tokens=length),
                times=Times.of(own.latency_s, self._readings),
                ttft_s=tuple(run[0] for run in own.seconds),
                tpot_s=percentiles(own.seconds),
                peak_bytes=runs[0].peaks.get(length),
                joules=round(runs[0].joules / tokens, 6) if runs[0].joules and length == cell.output_tokens else None,
                dense=Pairs(own.latency_s, others[0].latency_s) if others else None,
                warmup_s=whole.warmup_s if length == cell.output_tokens else (),
            )
        return found


def cut_to(runs: Runs, length: int) -> Runs:
    """The same, of the first `length` tokens only."""
    return replace(runs, seconds=tuple(run[:length] for run in runs.seconds))


def percentiles(runs: Iterable[Sequence[float]]) -> tuple[float, float, float] | None:
    """50th, 90th and 99th of the seconds of a token after the first, over all runs; None where there is none."""
    steps = sorted(later - sooner for run in runs for sooner, later in pairwise(run))
    if not steps:
        return None
    middle = round(median(steps), 9)
    return (middle, *(steps[min(len(steps) - 1, math.ceil(share * len(steps)) - 1)] for share in (0.90, 0.99)))  # type: ignore[return-value]


def _series(seconds: Sequence[Sequence[tuple[float, ...]]]) -> list[list[float]]:
    """Latencies of each, and the ratios of the first to the second."""
    each = [[run[-1] for run in runs] for runs in seconds]
    return each if len(each) < 2 else [*each, [a / b for a, b in zip(*each, strict=True)]]
