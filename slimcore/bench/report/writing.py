"""report.md: what was measured, on what, and how it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from slimcore.bench.grid import limit
from slimcore.bench.grid.cells import DENSE, TIMED
from slimcore.bench.judge import noise
from slimcore.bench.judge.baseline import Baseline
from slimcore.bench.judge.checks import Check
from slimcore.bench.judge.costs import changed_costs
from slimcore.bench.judge.gains import times
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records.records import Measurement
from slimcore.bench.records.results import Run, grouped, in_order
from slimcore.bench.report import figures, pareto, story, tables
from slimcore.files import write_text
from slimcore.units import human

REPORT = "report.md"


@dataclass(frozen=True)
class Findings:
    """A run, and what was found."""

    run: Run
    judge: Judge
    cells: Mapping[str, Measurement]  # of the run, in its order
    verdicts: Mapping[str, Judgement]
    failures: Sequence[Check]  # of the whole run

    @property
    def baseline(self) -> Baseline:
        """What was judged against."""
        return self.judge.baseline

    @property
    def passes(self) -> bool:
        """Whether no cell fails, nor the whole."""
        return not self.failures and all(verdict.passes for verdict in self.verdicts.values())


def write(found: Findings) -> Path:
    """Write the report and its figure into the run's folder; return the report's path."""
    run = found.run
    sections = [
        f"# {run.start.grid} on {run.start.machine}",
        _paragraph(_headline(run, found.cells)),
        *(_of_tests(found) if run.start.grid == TIMED else _of_grid(found)),
        "## Verdicts\n\n" + _paragraph(standing(found)),
        *(["## Noise\n\n" + noise.described(found.cells.values(), found.verdicts)] if run.start.aa else []),
        "## Environment\n\n" + "\n\n".join([tables.environment(run, found.baseline), *_spent(run)]),
    ]
    path = run.folder / REPORT
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def _of_tests(found: Findings) -> list[str]:
    """What tests that time code of their own have taken."""
    return ["## Tests\n\n" + tables.of_tests(list(found.cells.values()), found.verdicts)]


def _of_grid(found: Findings) -> list[str]:
    """The figure, and the tables of each model."""
    run, cells = found.run, in_order(found.cells.values())
    device = limit.seen(run.start.device, (reading for c in cells for reading in c.readings))
    drawn = figures.draw(cells, run.subjects, run.folder, device)
    reading, engines = story.told(cells), story.side_by_side(cells)
    return [
        f"![Throughput against latency]({drawn.name})" if drawn else "No cell has a time to draw.",
        *(
            f"## {own[0].cell.model}\n\n{tables.of_cells(own, found.verdicts, run.subjects, device)}"
            for own in grouped(cells, "model")
        ),
        *(["## What pruning bought\n\n" + reading] if reading else []),
        *(["## Engines side by side, tokens a second\n\n" + engines] if engines else []),
        "## Footprint and perplexity\n\n" + "\n\n".join([tables.footprints(run), *_quality_speed(found)]),
    ]


def _quality_speed(found: Findings) -> list[str]:
    """The figure of perplexity against speed, drawn where there are points enough."""
    panels = pareto.speeds(found.cells.values(), found.run.subjects)
    if not panels:
        return []
    drawn = pareto.draw(panels, "times the speed of dense", found.run.folder / pareto.FIGURE)
    return [f"![Perplexity against speed]({drawn.name})"]


def line(one: Measurement, judgement: Judgement) -> str:
    """A cell in a few words: `1.234 s, 13.0 tokens/s, same (+0.4%)`."""
    if not one.ran:
        return f"{one.status}, {judgement.verdict}"
    if one.cell.timed:
        return f"{one.latency:.4g} s, {tables.verdict_of(judgement)}"
    return f"{one.latency:.3f} s, {one.throughput:.1f} tokens/s, {tables.verdict_of(judgement)}"


def summary(found: Findings, resumed: int, *, checks: bool = True) -> list[str]:
    """The run in a few lines, for the terminal; `resumed` of its cells were measured by an earlier start.

    Without `checks`, not what fails the whole run.
    """
    lines = [*_headline(found.run, found.cells, resumed), *_spent(found.run), *standing(found, checks=checks)]
    if found.run.start.aa:
        lines += ["", *noise.described(found.cells.values(), found.verdicts).splitlines()]
    return [text.replace("**", "") for text in lines]


def _paragraph(lines: list[str]) -> str:
    """A sentence, and a list below it."""
    return "\n".join([lines[0], "", *lines[1:]]).strip()


def _headline(run: Run, cells: Mapping[str, Measurement], resumed: int = 0) -> list[str]:
    """What the pruning bought and cost, in a sentence a method."""
    count = Counter(c.status for c in cells.values())
    lines = [f"{len(cells)} of {len(run.planned)} cells measured: "]
    lines[0] += ", ".join(f"{count[status]} {status}" for status in ("ok", "oom", "error") if count[status])
    lines[0] += f" ({resumed} of them by an earlier start of this run)." if resumed else "."
    known = times(cells.values())
    for key, subject in run.subjects.items():
        ran = [known[i] for i, c in cells.items() if c.cell.subject == key and i in known]
        gains = [time.gain for time in ran if time.gain]
        dense = run.subjects.get((subject.model, DENSE, subject.dtype))
        if dense is None or not gains:
            continue
        text = (
            f"- **{', '.join(key)}**: x{min(g.ratio for g in gains):.2f} to x{max(g.ratio for g in gains):.2f} the"
            f" speed of dense with {human(subject.costs.parameters)} of {human(dense.costs.parameters)} parameters"
        )
        if subject.perplexity and dense.perplexity:
            text += f"; perplexity {tables.perplexity_of(dense)} -> {tables.perplexity_of(subject)}"
        slower, unsure = sum(g.high < 1 for g in gains), sum(not g.shown for g in gains)
        paired = sum(time.paired for time in ran)
        text += f"; **slower than dense in {slower} of {len(gains)} cells**" if slower else ""
        text += f"; not told from dense in {unsure} of {len(gains)}" if unsure else ""
        text += f"; measured in turn with dense in {paired} of {len(gains)}"
        lines.append(text + ".")
    return lines


def standing(found: Findings, *, checks: bool = True) -> list[str]:
    """How the cells stand against what they are compared with, and, with `checks`, the whole run."""
    run, baseline = found.run, found.baseline
    against = run.start.against
    compared = bool(against or baseline.nights)
    if compared:
        count = Counter(j.verdict for j in found.verdicts.values())
        stand = ", ".join(f"{n} {verdict}" for verdict, n in count.items()) or "no cell to compare"
        lines = [f"Against {against or baseline.name}: {stand}."]
    else:
        lines = [
            "This run is the only accepted night of its machine and grid: there is no other to compare it with."
            if baseline.itself
            else "No baseline for this machine and grid yet: --perf-update --perf-reason TEXT accepts a run."
        ]
        if others := baseline.others():
            lines.append(f"- other machines have one, with which nothing here is compared: {', '.join(others)}")
    if run.torn:
        lines.append(f"- {len(run.torn)} of its lines could not be read: {few(run.torn)}; what they told is lost")
    lines += _told(found, compared=compared)
    for key, subject in run.subjects.items():
        known = run.others.get(key) if against else baseline.costs.get(key)
        better = [words for words, worse in changed_costs(subject, known) if not worse]
        if better:
            lines.append(f"- {subject.name}, costs that changed and pass: {'; '.join(better)}")
    return lines + [f"- **FAILED** {check.name}: {check.message}" for check in found.failures if checks]


def _told(found: Findings, *, compared: bool) -> list[str]:
    """The verdicts that are more than counted; cells that failed for one cause together, with that cause once."""
    lines: list[str] = []
    failed: dict[str, list[str]] = {}
    for i, verdict in found.verdicts.items():
        if why := _failure(found.cells[i]):
            failed.setdefault(_cause(why), []).append(i)
        elif not verdict.passes or (compared and verdict.verdict not in ("same", "no baseline")):
            lines.append(f"- {verdict.message}")
    for cause, cells in failed.items():
        alone = len(cells) == 1
        lines.append(
            f"- {found.verdicts[cells[0]].message}" if alone else f"- {len(cells)} cells failed alike: {cause}"
        )
        lines += [] if alone else [f"  They are {few(cells)}"]
    return lines


def _failure(one: Measurement) -> str:
    """What went wrong in it, or in the other version of it; empty where nothing did."""
    if one.status == "error":
        return one.detail or one.status
    return f"{one.against.detail}\n(in the other version)" if one.against and one.against.status == "error" else ""


def _cause(why: str) -> str:
    """Of a traceback, the lines of the exception itself."""
    _, frame, last = why.rpartition('\n  File "')
    return "\n".join(dropwhile(lambda line: line.startswith("    "), last.splitlines()[1:])) if frame else why


def few(names: Collection[str]) -> str:
    """The first of them."""
    shown = list(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _spent(run: Run) -> list[str]:
    """`312 s, of which 71 % timed generation, 12 % warming up, 9 % building models.`; nothing where no cell says.

    From each process's start to its last cell; the rest is imports, the canary, and what fresh processes do untimed.
    """
    cells = run.cells.values()
    whole = sum(c.spent_s for c in cells)
    if not whole:
        return []
    parts = {
        "timed" if run.start.grid == TIMED else "timed generation": sum(map(_timed, cells)),
        "warming up": sum(sum(c.warmup_s) for c in cells),
        "building models": sum(s.seconds for s in (*run.subjects.values(), *run.others.values())),
    }
    shares = ", ".join(f"{100 * part / whole:.0f} % {what}" for what, part in parts.items() if part)
    return [f"{whole:.0f} s, of which {shares}."] if shares else []


def _timed(one: Measurement) -> float:
    """Seconds of generation for one cell; what two of its fields tell alike is counted once."""
    pairs = [*([one.dense] if one.dense else []), *([one.against.pairs, *one.against.fresh] if one.against else [])]
    samples = {
        one.times.latency_s,
        *(f.latency_s for f in one.fresh),
        *(s for p in pairs for s in (p.own_s, p.other_s)),
    }
    return sum(map(sum, samples))
