"""report.md: what was measured, on what, and how it stands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimcore.bench.grid import limit
from slimcore.bench.grid.cells import DENSE
from slimcore.bench.judge import noise
from slimcore.bench.judge.baseline import Baseline, cost_of
from slimcore.bench.judge.checks import Check, changed_costs
from slimcore.bench.judge.gains import times
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.judge.judging import Judge
from slimcore.bench.records.results import Record, Run, grouped, in_order, throughput
from slimcore.bench.report import figures, pareto, story, tables
from slimcore.bench.statistics import summarise
from slimcore.files import write_text
from slimcore.units import human

REPORT = "report.md"


@dataclass(frozen=True)
class Findings:
    """A run, and what was found."""

    run: Run
    judge: Judge
    cells: Mapping[str, Record]  # of the run, in its order
    verdicts: Mapping[str, Judgement]
    failures: Sequence[Check]  # of the whole run

    @property
    def baseline(self) -> Baseline:
        """What was judged against."""
        return self.judge.baseline


def write(found: Findings) -> Path:
    """Write the report and its figure into the run's folder; return the report's path."""
    run, cells = found.run, in_order(found.cells.values())
    device = limit.seen(cells)
    drawn = figures.draw(cells, run.subjects, run.folder, device)
    reading, engines = story.told(cells), story.side_by_side(cells)
    sections = [
        f"# {run.start['grid']} on {run.start['machine']}",
        _paragraph(_headline(run, found.cells)),
        f"![Throughput against latency]({drawn.name})" if drawn else "No cell has a time to draw.",
        *(
            f"## {own[0]['model']}\n\n{tables.of_cells(own, found.verdicts, run.subjects, device)}"
            for own in grouped(cells, "model")
        ),
        *(["## What pruning bought\n\n" + reading] if reading else []),
        *(["## Engines side by side, tokens a second\n\n" + engines] if engines else []),
        "## Footprint and perplexity\n\n" + "\n\n".join([tables.footprints(run), *_quality_speed(found)]),
        "## Verdicts\n\n" + _paragraph(standing(found)),
        *(["## Noise\n\n" + noise.described(found.cells, found.verdicts)] if run.start.get("aa") else []),
        "## Environment\n\n" + "\n\n".join([tables.environment(run, found.baseline), *_spent(run)]),
    ]
    path = run.folder / REPORT
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def _quality_speed(found: Findings) -> list[str]:
    """The figure of perplexity against speed, drawn where there are points enough."""
    panels = pareto.speeds(found.cells.values(), found.run.subjects)
    if not panels:
        return []
    drawn = pareto.draw(panels, "times the speed of dense", found.run.folder / pareto.FIGURE)
    return [f"![Perplexity against speed]({drawn.name})"]


def line(cell: Record, judgement: Judgement) -> str:
    """A cell in a few words: `1.234 s, 13.0 tokens/s, same (+0.4%)`."""
    if cell["status"] != "ok":
        return f"{cell['status']}, {judgement.verdict}"
    time = summarise(cell["latency_s"])
    return f"{time.centre:.3f} s, {throughput(cell):.1f} tokens/s, {tables.verdict_of(judgement)}"


def summary(found: Findings, resumed: int, *, checks: bool = True) -> list[str]:
    """The run in a few lines, for the terminal; `resumed` of its cells were measured by an earlier start.

    Without `checks`, not what fails the whole run.
    """
    lines = [*_headline(found.run, found.cells, resumed), *_spent(found.run), *standing(found, checks=checks)]
    if found.run.start.get("aa"):
        lines += ["", *noise.described(found.cells, found.verdicts).splitlines()]
    return [text.replace("**", "") for text in lines]


def append_step_summary(report: Path) -> None:
    """Append the report to $GITHUB_STEP_SUMMARY where that is set."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(report.read_text(encoding="utf-8"))


def _paragraph(lines: list[str]) -> str:
    """A sentence, and a list below it."""
    return "\n".join([lines[0], "", *lines[1:]]).strip()


def _headline(run: Run, cells: Mapping[str, Record], resumed: int = 0) -> list[str]:
    """What the pruning bought and cost, in a sentence a method."""
    count = {s: sum(c["status"] == s for c in cells.values()) for s in ("ok", "oom", "error")}
    lines = [f"{len(cells)} of {len(run.planned)} cells measured: "]
    lines[0] += ", ".join(f"{n} {s}" for s, n in count.items() if n)
    lines[0] += f" ({resumed} of them by an earlier start of this run)." if resumed else "."
    gains = {i: time.gain for i, time in times(cells.values()).items()}
    for (model, method), subject in run.subjects.items():
        own = (i for i, c in cells.items() if (c["model"], c["method"]) == (model, method))
        known = [gain for i in own if (gain := gains.get(i)) is not None]
        dense = run.subjects.get((model, DENSE))
        if dense is None or not known:
            continue
        text = (
            f"- **{model}, {method}**: x{min(g.ratio for g in known):.2f} to x{max(g.ratio for g in known):.2f} the"
            " speed of dense with"
            f" {human(subject['footprint']['parameters'])} of {human(dense['footprint']['parameters'])} parameters"
        )
        if subject["perplexity"] and dense["perplexity"]:
            text += f"; perplexity {tables.perplexity_of(dense)} -> {tables.perplexity_of(subject)}"
        slower, unsure = sum(g.high < 1 for g in known), sum(not g.shown for g in known)
        text += f"; **slower than dense in {slower} of {len(known)} cells**" if slower else ""
        text += f"; not told from dense in {unsure} of {len(known)}" if unsure else ""
        lines.append(text + ".")
    return lines


def standing(found: Findings, *, checks: bool = True) -> list[str]:
    """How the cells stand against what they are compared with, and, with `checks`, the whole run."""
    against = found.run.start.get("against")
    if against is None and not found.baseline.nights:
        others = found.baseline.others()
        lines = [
            "This run is the only accepted night of its machine and grid: there is no other to compare it with."
            if found.baseline.itself
            else "No baseline for this machine and grid yet: --perf-update --perf-reason TEXT accepts a run."
        ]
        if others:
            lines.append(f"- other machines have one, with which nothing here is compared: {', '.join(others)}")
    else:
        count = Counter(j.verdict for j in found.verdicts.values())
        what = against or found.baseline.name
        lines = [f"Against {what}: " + (", ".join(f"{n} {v}" for v, n in count.items()) or "no cell to compare") + "."]
        quiet = ("same", "no baseline")  # counted; what failed is said
        lines += [f"- {j.message}" for j in found.verdicts.values() if j.verdict not in quiet or not j.passes]
    for (model, method), subject in found.run.subjects.items():
        old = found.run.against.get((model, method)) if against else None
        known = cost_of(old) if old else found.baseline.costs.get(f"{model}/{method}")
        better = [line for line, worse in changed_costs(cost_of(subject), known) if not worse]
        if better:
            lines.append(f"- {model}/{method}, costs that changed and pass: {'; '.join(better)}")
    return lines + [f"- **FAILED** {check.name}: {check.message}" for check in found.failures if checks]


def _spent(run: Run) -> list[str]:
    """`312 s, of which 71 % timed generation, 12 % warming up, 9 % building models.`; nothing where no cell says.

    From each process's start to its last cell; the rest is imports, the canary, and what fresh processes do untimed.
    """
    cells = run.cells.values()
    whole = sum(c.get("spent_s", 0.0) for c in cells)
    if not whole:
        return []
    measured = [m for c in cells for m in (c, *c.get("fresh", []))]
    parts = {
        "timed generation": sum(sum(m.get(k, [])) for m in measured for k in ("latency_s", "ttft_s", "against_s")),
        "warming up": sum(sum(c.get("warmup_s", [])) for c in cells),
        "building models": sum(s.get("seconds", 0.0) for s in (*run.subjects.values(), *run.against.values())),
    }
    shares = ", ".join(f"{100 * part / whole:.0f} % {what}" for what, part in parts.items() if part)
    return [f"{whole:.0f} s, of which {shares}."] if shares else []
