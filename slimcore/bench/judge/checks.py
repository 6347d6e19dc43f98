"""What only the whole run shows: the machine, all cells together, slow drift, cells that were not measured or left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean, median

from slimcore.bench.grid.cells import TIMED
from slimcore.bench.judge.baseline import Baseline
from slimcore.bench.judge.costs import more_than
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.judge.judging import Judge
from slimcore.bench.judge.levels import canary_of, corrected, doubt, host_moved
from slimcore.bench.judge.references import Nights, beside
from slimcore.bench.judge.rules import EFFECT, RULES
from slimcore.bench.records.records import Measurement, Times
from slimcore.bench.records.results import Run
from slimcore.bench.statistics import MEDIAN, robust_deviation, shrunk, step_deviation

Z = 4.0  # nothing here is measured again
CANARY_EFFECT = 0.05
DRIFT = 0.05  # since the release
RECENT = 5  # nights that say where a cell is now
SHOWN = 5  # cells that a message names

Cells = Mapping[str, Measurement]


@dataclass(frozen=True)
class Check:
    """Something that is wrong with the run, and fails it."""

    name: str
    message: str


def failures(run: Run, cells: Cells, judge: Judge, verdicts: Mapping[str, Judgement]) -> list[Check]:
    """All checks that fail, for the `cells` of `run`."""
    quiet = {i: c for i, c in cells.items() if c.ran and verdicts[i].verdict != "slower"}
    checks = [_measured(run, cells)]
    dearer: dict[str, str] = {}
    if not run.start.against:
        checks += [
            _unmeasured(run, judge.baseline),
            _lost(run, judge.baseline),
            _machine(cells, judge, verdicts),
            _together(quiet, judge),
            _drift(cells, judge),
        ]
        dearer = more_than(judge.baseline.costs, run.subjects, "accepted")
    elif not run.start.aa:  # what differs from itself is a false alarm, to be counted
        checks.append(_together_beside(quiet))
        dearer = more_than(run.others, run.subjects, "the other version")
    return [
        *(check for check in checks if check is not None),
        *(Check(f"costs[{name}]", message) for name, message in dearer.items()),
    ]


def _measured(run: Run, cells: Cells) -> Check | None:
    if any(c.status != "error" for c in cells.values()):
        return None
    return Check("measured", f"0 of {len(run.planned)} cells measured: a gate that saw nothing is not green")


def _unmeasured(run: Run, baseline: Baseline) -> Check | None:
    """Accepted cells that the run set out to measure, and did not."""
    left = [i for i in run.planned if i in baseline.histories and i not in run.cells]
    if not left or run.start.budget:
        return None
    return Check(
        "not measured",
        "\n  ".join(
            [
                f"{len(left)} accepted cells of {len(run.planned)} planned ones were not measured, nor judged:",
                *left[:SHOWN],
                *(["..."] if len(left) > SHOWN else []),
                "finish the run with --perf-resume",
            ]
        ),
    )


def lost(run: Run, baseline: Baseline) -> list[str]:
    """Accepted cells that the grid no longer has: what a run has measured, or was to, is of its grid.

    Which tests time code of their own is known of those that were collected alone: of them none is ever lost.
    """
    if run.start.grid == TIMED:
        return []
    return sorted(set(baseline.histories) - {*run.start.grid_cells, *run.planned, *run.cells})


def _lost(run: Run, baseline: Baseline) -> Check | None:
    gone = lost(run, baseline)
    if not gone:
        return None
    new = [cell for cell in (*run.start.grid_cells, *run.cells) if cell not in baseline.histories]
    lines = [f"{len(gone)} accepted cells are not in the grid any more: nothing guards them"]
    for cell in gone:
        near = get_close_matches(cell, new, n=1, cutoff=0.8)
        lines.append(f"  {cell}" + (f": renamed to {near[0]}?" if near else ""))
    return Check("gone", "\n".join([*lines, "  where that is meant, accept it: --perf-update"]))


def _canaries(cells: Cells, judge: Judge) -> tuple[list[float], list[float]]:
    """The canary beside each cell, and its level on each night, in logarithms."""
    now = [canary_of(c.times).centre for c in cells.values() if c.times.canary]
    nights = [[canary_of(c.times).centre for c in n.cells.values() if c.times.canary] for n in judge.baseline.nights]
    return now, [median(night) for night in nights if night]


def _machine(cells: Cells, judge: Judge, verdicts: Mapping[str, Judgement]) -> Check | None:
    """The canary's own shift: taken off every cell, so said once."""
    now, levels = _canaries(cells, judge)
    if not now or not levels:
        return None
    device = judge.baseline.device
    deviation = shrunk(robust_deviation(levels), len(levels) - 1, RULES[device].canary)
    shift = median(now) - median(levels)
    if shift < math.log1p(CANARY_EFFECT) or shift < Z * deviation * math.sqrt(1 + MEDIAN / len(levels)):
        return None
    apart = sum(v.verdict == "slower" for v in verdicts.values())
    return Check(
        "machine",
        f"the machine is {math.expm1(shift):.0%} slower than on its accepted nights: a fixed matrix product and memory"
        f" copy say so; {len(now) - apart} cells follow it, {apart} do not. Its clocks, power limit, driver or"
        " neighbours changed, not the code alone",
    )


def _together(cells: Cells, judge: Judge) -> Check | None:
    """A slowdown that `cells` share, none slower by itself, and the canary does not: too small to see in one cell."""
    known = {i: nights for i, c in cells.items() if (nights := judge.nights(c)) and nights.nights}
    shifts = [_above(cells[i].times, nights) for i, nights in known.items()]
    if len(shifts) < 2:
        return None
    before = []
    for night in judge.baseline.nights:
        own = [_above(c.times, known[i]) for i, c in night.cells.items() if i in known and c.times in known[i].nights]
        if own:
            before.append(median(own))
    rule, (now, levels) = RULES[judge.baseline.device], _canaries(cells, judge)
    deviation = shrunk(robust_deviation(before), max(0, len(before) - 1), rule.night)
    canary = median(now) - median(levels) if now and levels else 0.0
    then = [c.times for night in judge.baseline.nights for c in night.cells.values()]
    wrong = doubt(judge.baseline.device, canary, host_moved((c.times for c in cells.values()), then))
    common = deviation * math.sqrt(1 + MEDIAN / max(1, len(before)))
    return _shared(median(shifts), math.hypot(common, wrong), len(shifts))


def _above(times: Times, nights: Nights) -> float:
    return corrected(times).centre - median(nights.centres)


def _together_beside(cells: Cells) -> Check | None:
    paired = [(c, r) for c in cells.values() if (r := beside(c)) and r.status == "ok"]
    if len(paired) < 2:
        return None
    found = [r.fresh_shift(c) or r.shift(c) for c, r in paired]
    # Cells share one pair of processes: what that is like by chance does not average out over them.
    process = max(r.against.process for _, r in paired)
    deviation = math.sqrt(MEDIAN * fmean(f.s**2 for f in found) / len(found) + process**2)
    return _shared(median(f.d for f in found), deviation, len(found))


def _shared(shift: float, deviation: float, count: int) -> Check | None:
    if shift < math.log1p(EFFECT) or shift < Z * deviation:
        return None
    return Check(
        "together",
        f"the {count} cells that are not slower by themselves together take {math.expm1(shift):.1%} longer, and the"
        " machine does not: something they share became slower (a library, a driver's launch, the host's processor)",
    )


def _drift(cells: Cells, judge: Judge) -> Check | None:
    """Slower than the pinned release by steps that each were too small."""
    release = judge.baseline.release
    if release is None:
        return None
    worse = []
    for i, cell in cells.items():
        known, then = judge.nights(cell), release.cells.get(i)
        nights = judge.baseline.histories.get(i, [])
        if known is None or then is None or not then.status == cell.status == "ok" or release not in nights:
            continue
        before = [n.cells[i] for n in nights if not n.pinned and n.cells[i].status == "ok"]
        recent = [corrected(times).centre for times in (*(c.times for c in before), cell.times)][-RECENT:]
        shift = median(recent) - corrected(then.times).centre
        one = shrunk(step_deviation(known.centres), len(known.nights) - 1, RULES[judge.baseline.device].night)
        deviation = one * math.sqrt(1 + MEDIAN / len(recent))
        if shift > math.log1p(DRIFT) and shift > Z * deviation:
            worse.append(f"  {i}: {math.expm1(shift):.1%} longer than in the release")
    if not worse:
        return None
    head = f"{len(worse)} cells drifted over {DRIFT:.0%} from the release of {release.started[:10]} ({release.reason}):"
    return Check("drift", "\n".join([head, *worse]))
