"""Measuring one cell: by itself, beside the dense model, beside another version; and a suspect again."""

from __future__ import annotations

import math
from dataclasses import replace

from slimcore.bench.grid.cells import DENSE as DENSE_METHOD
from slimcore.bench.grid.cells import Cell
from slimcore.bench.grid.limit import least_bytes
from slimcore.bench.judge.levels import log_ratios, ratios
from slimcore.bench.judge.rules import PROCESSES, RULES
from slimcore.bench.measure.protocol import Protocol
from slimcore.bench.records.records import Against, Measurement, Pairs, Status, Times
from slimcore.bench.records.results import Run
from slimcore.bench.statistics import pooled
from slimcore.bench.suite.lanes import DENSE, OTHER, OWN, Lane, Lanes
from slimcore.bench.suite.turns import READINGS, RefusedOneError, Turns
from slimcore.bench.suite.workers import Refused
from slimcore.errors import ResultsError


class Executor:
    """Has cells measured by workers; memory that runs out is a result, any other failure a ResultsError."""

    def __init__(self, run: Run, lanes: Lanes, protocol: Protocol, *, versions: bool) -> None:
        """`versions`: another version, in the lane `other`, is measured in turn with this one."""
        self._run, self._lanes, self._protocol, self._versions = run, lanes, protocol, versions
        self._turns = Turns(lanes, protocol)
        self._round = 1

    def measure(self, cell: Cell, lengths: tuple[int, ...], dense: Cell | None) -> list[Measurement]:
        """`cell`, and the same with fewer output tokens, of `lengths`; in turn with `dense` where both fit."""
        if self._versions:
            return [self._beside_the_other(cell)]
        beside = None
        try:
            beside = self._dense(cell, dense)
            own = self._lanes.lane(OWN, cell)
        except Refused as refused:
            self._lanes.close()
            if dense is not None:  # with the dense model beside it: that says nothing of it alone
                return self.measure(cell, lengths, None)
            return [Measurement(cell, "oom", f"the model itself does not fit: {refused}")]
        try:
            return list(self._turns.measured(cell, lengths, own, beside).values())
        except RefusedOneError as one:
            if beside is not None:  # both together did not fit: that says nothing of one
                self._lanes.close()
                return self.measure(cell, lengths, None)
            if one.refused.kept:  # something holds memory that nothing should
                self._lanes.close()
            return [Measurement(cell, "oom", str(one.refused))]

    def again(self, cell: Cell, known: Measurement) -> Measurement:
        """The suspect `known` in fresh processes, one after the other, as many samples in each as before."""
        self._lanes.make_room()
        try:
            return self._again(cell, known)
        except (Refused, RefusedOneError) as refused:
            raise ResultsError(f"{cell.id} ran out of memory when it was measured again: {refused}") from None

    def _again(self, cell: Cell, known: Measurement) -> Measurement:
        count = self._protocol.again(known.times.latency_s)
        protocol = replace(self._protocol, repeats=(count, count), seconds=math.inf)
        if known.against is not None:
            fresh = tuple(self._fresh_pairs(cell, protocol) for _ in range(PROCESSES))
            process = self._process(cell, fresh)
            return replace(known, against=replace(known.against, fresh=fresh, process=process))
        latencies, readings = [], []
        for _ in range(PROCESSES):
            lane = self._lanes.fresh(OWN, cell)
            try:
                readings += self._turns.canary(lane, cell.device, times=READINGS // PROCESSES)[0]
                latencies.append(self._turns.take([(lane, cell)], (), protocol)[0].latency_s)
                readings += self._turns.canary(lane, cell.device, times=READINGS // PROCESSES)[0]
            finally:
                lane.worker.close()
        return replace(known, fresh=tuple(Times.of(latency, readings) for latency in latencies))

    def _dense(self, cell: Cell, dense: Cell | None) -> tuple[Lane, Cell] | None:
        """The lane of the dense model, where both fit; None where it is not to be measured beside `cell`."""
        if cell.method == DENSE_METHOD:
            self._lanes.close(DENSE)  # of another model
            return None
        known = None if dense is None else self._run.subjects.get(dense.subject)
        if dense is None or known is None:
            return None
        own = self._run.subjects.get(cell.subject, known)  # a cut is not larger than what it was cut from
        needed = least_bytes(own.costs, cell.shape) + least_bytes(known.costs, dense.shape)
        if self._lanes.has_room(needed):
            return self._lanes.lane(DENSE, dense), dense
        if self._lanes.has_room(least_bytes(own.costs, cell.shape) + known.costs.weight_bytes):
            self._lanes.rest(DENSE)
        else:
            self._lanes.close(DENSE)
        return None

    def _beside_the_other(self, cell: Cell) -> Measurement:
        """Both versions in turn."""
        if cell.round != self._round:  # a round is a run: it has processes of its own
            self._lanes.close()
            self._round = cell.round
        new, own = self._opened(OWN, cell)
        old, other = self._opened(OTHER, cell)
        if own is None or other is None:
            return Measurement(cell, _status(new), new, against=Against(_status(old), old))
        length = (cell.output_tokens,)
        try:
            ours, theirs = self._turns.take([(own, cell), (other, cell)], length)
        except RefusedOneError as one:
            self._lanes.close()
            words = ["", ""]
            words[one.number] = str(one.refused)
            return Measurement(cell, _status(words[0]), words[0], against=Against(_status(words[1]), words[1]))
        pairs = Pairs(ours.latency_s, theirs.latency_s)
        earlier = [c.against.pairs for c in self._run.cells.values() if c.against and c.against.pairs.own_s]
        against = Against(
            "ok", pairs=pairs, process=self._process(cell),
            pooled=pooled(map(log_ratios, (*earlier, pairs)), RULES[cell.device].process),
        )  # fmt: skip
        times = Times(ours.latency_s)
        return Measurement(
            cell, "ok", times=times, ttft_s=tuple(run[0] for run in ours.seconds), warmup_s=ours.warmup_s,
            peak_bytes=ours.peaks.get(cell.output_tokens), against=against,
        )  # fmt: skip

    def _opened(self, name: str, cell: Cell) -> tuple[str, Lane | None]:
        """The lane in which the cell's first run has fitted; or the allocator's words, and none."""
        try:
            lane = self._lanes.lane(name, cell)
            self._lanes.open(lane, cell, ())
            lane.worker.ask("run", self._lanes.patience(cell, lane, once=True))
        except Refused as refused:
            self._lanes.close(name)
            return f"the model or its first run does not fit: {refused}", None
        return "", lane

    def _fresh_pairs(self, cell: Cell, protocol: Protocol) -> Pairs:
        lanes: list[Lane] = []
        try:
            lanes.extend(self._lanes.fresh(name, cell) for name in (OWN, OTHER))
            ours, theirs = self._turns.take([(lane, cell) for lane in lanes], (), protocol)
        finally:
            for lane in lanes:
                lane.worker.close()
        return Pairs(ours.latency_s, theirs.latency_s)

    def _process(self, cell: Cell, *fresh: tuple[Pairs, ...]) -> float:
        """Standard deviation from one pair of processes to another, over the cells that were measured in several."""
        known = [c.against.fresh for c in self._run.cells.values() if c.against and c.against.fresh and c.id != cell.id]
        centres = ([ratios(pairs).centre for pairs in several] for several in (*known, *fresh))
        return pooled(centres, RULES[cell.device].process)


def _status(refusal: str) -> Status:
    return "oom" if refusal else "ok"
