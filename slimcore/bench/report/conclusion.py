"""A measured run -> verdicts, report, and, where asked, an accepted night."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimcore.bench.judge import baseline as accepted
from slimcore.bench.judge import checks
from slimcore.bench.judge.baseline import cost_of
from slimcore.bench.judge.checks import Check
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records.results import Run
from slimcore.bench.report import writing as report
from slimcore.bench.report.writing import Findings
from slimcore.bench.statistics import summarise
from slimcore.errors import ResultsError, SlimcoreError

ALLOWED = ("dirty", "missing", "inconclusive")
MOVED = ("slower", "faster", "status changed")


@dataclass(frozen=True)
class Update:
    """How a run is to be accepted."""

    reason: str | None
    replace: bool = False  # cells that moved start anew
    allow: Collection[str] = ()  # of ALLOWED
    pin: bool = False


@dataclass(frozen=True)
class Conclusion:
    """What a run comes to."""

    lines: list[str]  # for the terminal
    failures: list[Check]


def find(run: Run, judge: Judge) -> Findings:
    """Judge every cell, and the whole."""
    cells = {i: run.cells[i] for i in run.planned if i in run.cells}
    verdicts = judge.all(cells.values())
    return Findings(run, judge, cells, verdicts, checks.failures(run, cells, judge, verdicts))


def conclude(found: Findings, *, update: Update | None = None, resumed: int = 0, tests: bool = False) -> Conclusion:
    """Write the report; accept the run where that is asked. Where the failures become `tests`, lines only name them."""
    failures = list(found.failures)
    lines = report.summary(found, resumed, checks=not tests)
    try:
        path = report.write(found)
        report.append_step_summary(path)
        if update is not None:
            lines += accept(found, update)
            # What was meant is no failure any more.
            failures = [
                c for c in failures if not (c.name == "gone" or (update.replace and c.name.startswith("costs")))
            ]
        last = [f"report: {path}"]
    except (SlimcoreError, OSError) as error:
        last = [] if tests else [f"ERROR: {error}"]
        failures.append(Check("report" if update is None else "accepting", str(error)))
    named = [f"- FAILED {check.name}" for check in failures if tests]
    return Conclusion([*lines, *named, *last], failures)


def accept(found: Findings, update: Update) -> list[str]:
    """Add the run to the baseline as a night; the difference, in Markdown. Raises ResultsError where it must not be."""
    run, baseline = found.run, found.baseline
    if not update.reason:
        raise ResultsError("--perf-update needs --perf-reason TEXT: why these measurements are right")
    if run.start.get("against"):
        raise ResultsError("a run with --perf-against or --perf-aa has no baseline: accept a run without it")
    moved = sorted(i for i, v in found.verdicts.items() if v.verdict in MOVED)
    gone = checks.lost(baseline, run.start["grid_cells"])
    worse = [check for check in found.failures if check.name.startswith("costs")]
    _refuse(found, update, moved, worse)
    path = accepted.write(
        baseline,
        run.start | {"started": run.began[0]},  # gone on with, it is still one night
        [run.done[i] for i in run.planned if i in run.done],
        run.subjects.values(),
        reason=update.reason,
        moved=moved,
        gone=gone,
        pinned=update.pin,
    )
    return [*difference(found, moved, gone), "", f"accepted {len(run.done)} cells as the night {path}"]


def difference(found: Findings, moved: Collection[str], gone: Collection[str]) -> list[str]:
    """What accepting changes, as Markdown: cells that moved, are new or gone, and costs."""
    lines = ["", "| cell | accepted | now | |", "|---|---:|---:|---|"]
    count = len(lines)
    references = found.baseline.references
    for i, cell in found.run.done.items():
        old, now = references.get(i), _seconds(cell["status"], [cell])
        if old is None:
            lines.append(f"| {i} | | {now} | new |")
        elif i in moved:
            lines.append(f"| {i} | {_seconds(old.status, old.nights)} | {now} | {found.verdicts[i].verdict} |")
    lines += [f"| {i} | {_seconds(references[i].status, references[i].nights)} | | gone |" for i in gone]
    for (model, method), subject in found.run.subjects.items():
        known = found.baseline.costs.get(f"{model}/{method}")
        changed = [words for words, _ in checks.changed_costs(cost_of(subject), known)]
        lines += [f"| {model}/{method} | | | {words} |" for words in changed]
    return lines if len(lines) > count else ["", "Nothing moved: one more night of the same."]


def _refuse(found: Findings, update: Update, moved: Sequence[str], worse: Sequence[Check]) -> None:
    run = found.run
    unknown = set(update.allow) - set(ALLOWED)
    if unknown:
        raise ResultsError(f"--perf-allow {min(unknown)!r} is none of {', '.join(ALLOWED)}")
    missing = [i for i in run.planned if i not in run.done]
    unsure = [i for i, v in found.verdicts.items() if v.verdict == "inconclusive"]
    problems = {
        "dirty": "the working tree has changes that no commit holds" if run.start["software"].get("dirty") else "",
        "missing": f"{len(missing)} of {len(run.planned)} cells have no result to accept ({_few(missing)}): finish the"
        " run with --perf-resume" if missing else "",
        "inconclusive": f"{len(unsure)} cells are inconclusive ({_few(unsure)}): measure on a quieter machine, or"
        " for longer" if unsure else "",
    }  # fmt: skip
    for name, problem in problems.items():
        if problem and name not in update.allow:
            raise ResultsError(f"{problem}; or accept it all the same: --perf-allow {name}")
    if not update.replace and (moved or worse):
        what = _few([*moved, *(check.name for check in worse)])
        raise ResultsError(
            f"{len(moved) + len(worse)} cells or costs moved ({what}): a night of another level would blur the"
            " baseline; where that level is meant, --perf-update replace starts it anew"
        )


def _few(names: Collection[str]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _seconds(status: str, measured: Iterable[Mapping[str, Any]]) -> str:
    times = [s for m in measured for s in m["latency_s"]] if status == "ok" else []
    return f"{summarise(times).centre:.4g} s" if times else status
