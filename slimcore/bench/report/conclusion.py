"""A measured run -> verdicts, report, and, where asked, an accepted night."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from slimcore.bench.judge import baseline as accepted
from slimcore.bench.judge import checks
from slimcore.bench.judge.checks import Check
from slimcore.bench.judge.costs import changed_costs
from slimcore.bench.judge.judging import Judge
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.results import Run
from slimcore.bench.report import step_summary
from slimcore.bench.report import writing as report
from slimcore.bench.report.tables import accepted_of, status_of
from slimcore.bench.report.writing import Findings, few
from slimcore.errors import ResultsError, SlimcoreError

ALLOWED = ("dirty", "missing", "inconclusive", "moved")
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
    """Judge every cell that was measured, and the whole."""
    cells = {i: run.cells[i] for i in dict.fromkeys([*run.planned, *run.cells]) if i in run.cells}
    verdicts = judge.all(cells.values())
    return Findings(run, judge, cells, verdicts, checks.failures(run, cells, judge, verdicts))


def conclude(found: Findings, *, update: Update | None = None, resumed: int = 0, tests: bool = False) -> Conclusion:
    """Write the report; accept the run where that is asked. Where the failures become `tests`, lines only name them."""
    failures = list(found.failures)
    lines = report.summary(found, resumed, checks=not tests)
    try:
        path = report.write(found)
        step_summary.append(path)
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
    moved = sorted(i for i, v in found.verdicts.items() if v.verdict in MOVED)
    left = _better(found, moved) if "moved" in update.allow and not update.replace else []
    moved = [i for i in moved if i not in left]
    _refuse(found, update, moved)
    taken = {i: run.done[i] for i in run.planned if i in run.done and i not in left}
    if not taken:
        raise ResultsError(f"0 of {len(run.planned)} cells are left to accept: where they moved as they should,"
                           " --perf-update replace starts them anew")  # fmt: skip
    gone = checks.lost(run, baseline)
    path = accepted.write(
        baseline, run, taken.values(), reason=update.reason or "", moved=moved, gone=gone, pinned=update.pin
    )
    told = "; what moved is left out" if left else ""
    return [*difference(found, moved, gone, left), "", f"accepted {len(taken)} cells as the night {path}{told}"]


def difference(found: Findings, moved: Collection[str], gone: Collection[str], left: Collection[str] = ()) -> list[str]:
    """What accepting changes, as Markdown: cells that moved, are new or gone, or are left out, and costs."""
    rows = []
    for i, one in found.run.done.items():
        old, now = accepted_of(found.baseline, i), f"{one.latency:.4g}" if one.ran else status_of(one)
        verdict = found.verdicts[i].verdict if i in found.verdicts else ""
        if not old:
            rows.append(_change(i, "", now, "new"))
        elif i in moved or i in left:
            rows.append(_change(i, old, now, f"{verdict}, left out" if i in left else verdict))
    rows += [_change(i, accepted_of(found.baseline, i), "", "gone") for i in gone]
    for key, subject in found.run.subjects.items():
        changed = changed_costs(subject, found.baseline.costs.get(key))
        rows += [_change(subject.name, "", "", words) for words, _ in changed]
    return ["", *(tabulated(rows).splitlines() if rows else ["Nothing moved: one more night of the same."])]


def _change(name: str, old: str, new: str, what: str) -> dict[str, str]:
    return {"cell": name, "accepted (s)": old, "now (s)": new, "change": what}


def _better(found: Findings, moved: Sequence[str]) -> list[str]:
    """Those that are faster, or fit where they did not."""
    return [i for i in moved if found.verdicts[i].passes]


def _refuse(found: Findings, update: Update, moved: Sequence[str]) -> None:
    """Raise ResultsError where the run must not be accepted, or not without being allowed."""
    run = found.run
    if not update.reason:
        raise ResultsError("--perf-update needs --perf-reason TEXT: why these measurements are right")
    if run.start.against:
        raise ResultsError("a run with --perf-against or --perf-aa has no baseline: accept a run without it")
    if any(start.mixed for start in run.starts):
        raise ResultsError(
            f"{run.folder} was gone on with at another commit or with other versions: it is no night of either;"
            " measure it anew, without --perf-resume"
        )
    unknown = set(update.allow) - set(ALLOWED)
    if unknown:
        raise ResultsError(f"--perf-allow {min(unknown)!r} is none of {', '.join(ALLOWED)}")
    missing = [i for i in run.planned if i not in run.done]
    unsure = [i for i, v in found.verdicts.items() if v.verdict == "inconclusive"]
    trees = {start.software.get("dirty", False) for start in run.starts}
    problems = {
        "dirty": "the working tree has changes that no commit holds" if True in trees
        else "git cannot say which commit this is (no repository, or of another owner)" if None in trees else "",
        "missing": f"{len(missing)} of {len(run.planned)} cells have no result to accept ({few(missing)}): finish the"
        " run with --perf-resume" if missing else "",
        "inconclusive": f"{len(unsure)} cells are inconclusive ({few(unsure)}): measure on a quieter machine, or"
        " for longer" if unsure else "",
    }  # fmt: skip
    for name, problem in problems.items():
        if problem and name not in update.allow:
            raise ResultsError(f"{problem}; or accept it all the same: --perf-allow {name}")
    worse = [check.name for check in found.failures if check.name.startswith("costs")]
    if not update.replace and (moved or worse):
        better = "" if worse or len(_better(found, moved)) < len(moved) else "; --perf-allow moved leaves them out"
        raise ResultsError(
            f"{len(moved) + len(worse)} cells or costs moved ({few([*moved, *worse])}): a night of another level would"
            f" blur the baseline; where that level is meant, --perf-update replace starts it anew{better}"
        )
