"""What only the whole run shows: the machine, all cells together, slow drift, costs without a clock, lost cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean, median

from slimcore.bench.judge.baseline import Baseline, Record, cost_of
from slimcore.bench.judge.gate import EFFECT, RULES, Judgement, canary_of, corrected, doubt, host_moved
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records.results import Run
from slimcore.bench.statistics import MEDIAN, robust_deviation, shrunk, step_deviation

Z = 4.0  # nothing here is measured again
CANARY = {"cpu": 0.15, "cuda": 0.01}  # night to night deviation that is expected of it
CANARY_EFFECT = 0.05
DRIFT = 0.05  # since the release
RECENT = 5  # nights that say where a cell is now
OPERATORS = "operator_calls_per_token"
PERPLEXITY = 1e-3  # relative; below lies what another order of float operations does


@dataclass(frozen=True)
class Check:
    """Something that is wrong with the run, and fails it."""

    name: str
    message: str


def failures(run: Run, cells: Mapping[str, Record], judge: Judge, verdicts: Mapping[str, Judgement]) -> list[Check]:
    """All checks that fail, for the `cells` of `run`."""
    quiet = {i: cell for i, cell in cells.items() if cell["status"] == "ok" and verdicts[i].verdict != "slower"}
    checks = [_measured(run, cells)]
    if not run.start.get("against"):
        checks += [
            _lost(judge.baseline, run.start["grid_cells"]),
            _machine(cells, judge, verdicts),
            _together(quiet, judge),
            _drift(cells, judge),
            *costs(run.subjects, judge.baseline.costs, "accepted"),
        ]
    elif not run.start.get("aa"):  # what differs from itself is a false alarm, to be counted
        known = {f"{model}/{method}": cost_of(s) for (model, method), s in run.against.items()}
        checks += [_together_beside(quiet, judge), *costs(run.subjects, known, "the other version")]
    return [check for check in checks if check is not None]


def _measured(run: Run, cells: Mapping[str, Record]) -> Check | None:
    if any(c["status"] in ("ok", "oom") for c in cells.values()):
        return None
    return Check("measured", f"0 of {len(run.planned)} cells measured: a gate that saw nothing is not green")


def lost(baseline: Baseline, planned: Collection[str]) -> list[str]:
    """Accepted cells that the grid no longer has."""
    return sorted(set(baseline.histories) - set(planned))


def _lost(baseline: Baseline, planned: Collection[str]) -> Check | None:
    gone = lost(baseline, planned)
    if not gone:
        return None
    new = [cell for cell in planned if cell not in baseline.histories]
    lines = [f"{len(gone)} accepted cells are not in the grid any more: nothing guards them"]
    for cell in gone:
        near = get_close_matches(cell, new, n=1, cutoff=0.8)
        lines.append(f"  {cell}" + (f": renamed to {near[0]}?" if near else ""))
    return Check("gone", "\n".join([*lines, "  where that is meant, accept it: --perf-update"]))


def _canaries(cells: Mapping[str, Record], judge: Judge) -> tuple[list[float], list[float]]:
    """The canary beside each cell, and its level on each night, in logarithms."""
    now = [canary_of(cell).centre for cell in cells.values() if cell.get("canary")]
    nights = [[canary_of(c).centre for c in n.cells.values() if c.get("canary")] for n in judge.baseline.nights]
    return now, [median(night) for night in nights if night]


def _machine(cells: Mapping[str, Record], judge: Judge, verdicts: Mapping[str, Judgement]) -> Check | None:
    """The canary's own shift: taken off every cell, so said once."""
    now, levels = _canaries(cells, judge)
    if not now or not levels:
        return None
    device = judge.baseline.device
    deviation = shrunk(robust_deviation(levels), len(levels) - 1, CANARY[device])
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


def _together(cells: Mapping[str, Record], judge: Judge) -> Check | None:
    """A slowdown that `cells` share, none slower by itself, and the canary does not: too small to see in one cell."""
    known = {i: r for i, r in judge.baseline.references.items() if r.nights}
    shifts = [corrected(c).centre - median(known[i].centres) for i, c in cells.items() if i in known]
    if len(shifts) < 2:
        return None
    before = []
    for night in judge.baseline.nights:
        own = [corrected(c).centre - median(known[i].centres) for i, c in night.cells.items()
               if c["status"] == "ok" and i in known and c in known[i].nights]  # fmt: skip
        if own:
            before.append(median(own))
    rule, (now, levels) = RULES[judge.baseline.device], _canaries(cells, judge)
    deviation = shrunk(robust_deviation(before), max(0, len(before) - 1), rule.night)
    canary = median(now) - median(levels) if now and levels else 0.0
    host = host_moved(cells.values(), (c for night in judge.baseline.nights for c in night.cells.values()))
    wrong = doubt(judge.baseline.device, canary, host)
    return _shared(
        median(shifts), math.hypot(deviation * math.sqrt(1 + MEDIAN / max(1, len(before))), wrong), len(shifts)
    )


def _together_beside(cells: Mapping[str, Record], judge: Judge) -> Check | None:
    paired = [(c, r) for c in cells.values()
              if c.get("against_status") == "ok" and (r := judge.reference(c))]  # fmt: skip
    if len(paired) < 2:
        return None
    found = [r.fresh_shift(c) if "fresh" in c else r.shift(c) for c, r in paired]
    # Cells share one pair of processes: what that is like by chance does not average out over them.
    process = max(cell.get("process", 0.0) for cell, _ in paired)
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


def _drift(cells: Mapping[str, Record], judge: Judge) -> Check | None:
    """Slower than the pinned release by steps that each were too small."""
    release = judge.baseline.release
    if release is None:
        return None
    worse = []
    for i, cell in cells.items():
        nights = judge.baseline.histories.get(i, [])
        known = judge.baseline.references.get(i)
        then = release.cells.get(i)
        if known is None or then is None or not then["status"] == cell["status"] == "ok" or release not in nights:
            continue
        recent = [corrected(c).centre for c in (*[n.cells[i] for n in nights if n.pinned is False], cell)][-RECENT:]
        shift = median(recent) - corrected(then).centre
        one = shrunk(step_deviation(known.centres), len(known.nights) - 1, RULES[judge.baseline.device].night)
        deviation = one * math.sqrt(1 + MEDIAN / len(recent))
        if shift > math.log1p(DRIFT) and shift > Z * deviation:
            worse.append(f"  {i}: {math.expm1(shift):.1%} longer than in the release")
    if not worse:
        return None
    head = f"{len(worse)} cells drifted over {DRIFT:.0%} from the release of {release.started[:10]} ({release.reason}):"
    return Check("drift", "\n".join([head, *worse]))


def costs(subjects: Mapping[tuple[str, str], Record], old: Mapping[str, Record], what: str) -> list[Check]:
    """Costs and perplexities that got worse, exactly; a check a subject."""
    checks = []
    for (model, method), subject in subjects.items():
        name = f"{model}/{method}"
        worse = [line for line, is_worse in changed_costs(cost_of(subject), old.get(name)) if is_worse]
        if worse:
            lines = [f"{name} costs more than {what}:", *(f"  {line}" for line in worse)]
            lines.append("  where that is meant, accept it: --perf-update replace")
            checks.append(Check(f"costs[{name}]", "\n".join(lines)))
    return checks


def changed_costs(new: Record, old: Record | None) -> list[tuple[str, bool]]:
    """Every cost that changed, in words, and whether it is worse.

    More operators are not where other versions of the libraries call them: those are no change of ours.
    """
    if old is None:
        return []
    lines = []
    for name, value in new["footprint"].items():
        before = old["footprint"].get(name, value)
        if value != before:
            by, then = ((x.get("counted_by") if name == OPERATORS else None) for x in (new, old))
            others = "" if by == then else f" ({then or 'unknown versions'} -> {by})"
            lines.append((f"{name} {before:,} -> {value:,}{others}", value > before and not others))
    a, b = old.get("perplexity"), new.get("perplexity")
    if a and b and a.get("tokens_sha256") != b.get("tokens_sha256"):
        lines.append(("perplexity is not compared: it is measured on other tokens than the accepted one", False))
    elif a and b and abs(b["value"] / a["value"] - 1) > PERPLEXITY:
        lines.append((f"perplexity {a['value']:.4f} -> {b['value']:.4f}", b["value"] > a["value"]))
    return lines
