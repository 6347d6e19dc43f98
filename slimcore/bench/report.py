"""report.md: what was measured, on what, and how it stands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from slimcore.bench import figures, limit, noise, pareto, story
from slimcore.bench.baseline import Baseline, cost_of
from slimcore.bench.cell import DENSE
from slimcore.bench.checks import Check, changed_costs
from slimcore.bench.gate import Judgement
from slimcore.bench.judging import Judge
from slimcore.bench.limit import Device
from slimcore.bench.results import Record, Run, throughput
from slimcore.bench.statistics import Comparison, compare, summarise
from slimcore.bench.table import tabulated
from slimcore.files import write_text
from slimcore.units import human

REPORT = "report.md"
SLOW_FIRST = 1.5  # times a run


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
    run, cells = found.run, found.cells
    device = limit.seen(cells.values())
    drawn = figures.draw(list(cells.values()), run.subjects, run.folder, device)
    reading, engines = story.told(list(cells.values())), story.side_by_side(list(cells.values()))
    sections = [
        f"# {run.start['grid']} on {run.start['machine']}",
        _paragraph(_headline(run, cells)),
        f"![Throughput against latency]({drawn.name})" if drawn else "No cell has a time to draw.",
        *_model_sections(found, device),
        *(["## What pruning bought\n\n" + reading] if reading else []),
        *(["## Engines side by side, tokens a second\n\n" + engines] if engines else []),
        "## Footprint and perplexity\n\n" + "\n\n".join([_footprints(run), *_quality_speed(found)]),
        "## Verdicts\n\n" + _paragraph(standing(found)),
        *(["## Noise\n\n" + noise.described(cells, found.verdicts)] if run.start.get("aa") else []),
        "## Environment\n\n" + "\n\n".join([_environment(run, found.baseline), *_spent(run)]),
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
    return f"{time.centre:.3f} s, {throughput(cell):.1f} tokens/s, {_verdict(judgement)}"


def summary(found: Findings, resumed: int, *, checks: bool = True) -> list[str]:
    """The run in a few lines, for the terminal; `resumed` of its cells were measured by an earlier start.

    Without `checks`, not what fails the whole run.
    """
    lines = [*_headline(found.run, found.cells, resumed), *_spent(found.run), *standing(found, checks=checks)]
    if found.run.start.get("aa"):
        lines += ["", *noise.described(found.cells, found.verdicts).splitlines()]
    return [text.replace("**", "") for text in lines]


def comparison(found: Findings) -> str:
    """A row a cell: before, now, verdict."""
    rows = []
    for i, cell in found.cells.items():
        known = found.baseline.references.get(i)
        before = [s for night in known.nights for s in night["latency_s"]] if known else []
        rows.append(
            {
                "cell": i,
                "old (s)": f"{summarise(before).centre:.4g}" if before else known.status if known else "",
                "new (s)": f"{summarise(cell['latency_s']).centre:.4g}" if cell["status"] == "ok" else cell["status"],
                "verdict": _verdict(found.verdicts[i]),
            }
        )
    return tabulated(rows)


def append_step_summary(report: Path) -> None:
    """Append the report to $GITHUB_STEP_SUMMARY where that is set."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(report.read_text(encoding="utf-8"))


def speedup(cell: Record, cells: Mapping[str, Record]) -> Comparison | None:
    """How many times faster than the dense model's cell of the same shape; None where either has no time."""
    same = ("model", "input_tokens", "output_tokens", "batch", "engine", "dtype")
    for other in cells.values():
        if other["method"] == DENSE and other["round"] == cell["round"] and all(other[k] == cell[k] for k in same):
            if cell["status"] == other["status"] == "ok":
                return compare(summarise(other["latency_s"]), summarise(cell["latency_s"]))
            return None
    return None


def tpot(cell: Record) -> float | None:
    """Seconds a token after the first: median over pairs of (latency - TTFT) / (N - 1); None where there is none."""
    steps = cell["output_tokens"] - 1
    if steps < 1 or not cell["ttft_s"]:
        return None
    pairs = zip(cell["latency_s"], cell["ttft_s"], strict=True)
    return float(pd.Series([(whole - first) / steps for whole, first in pairs]).median())


def _paragraph(lines: list[str]) -> str:
    """A sentence, and a list below it."""
    return "\n".join([lines[0], "", *lines[1:]]).strip()


def _headline(run: Run, cells: Mapping[str, Record], resumed: int = 0) -> list[str]:
    """What the pruning bought and cost, in a sentence a method."""
    count = {s: sum(c["status"] == s for c in cells.values()) for s in ("ok", "oom", "error")}
    lines = [f"{len(cells)} of {len(run.planned)} cells measured: "]
    lines[0] += ", ".join(f"{n} {s}" for s, n in count.items() if n)
    lines[0] += f" ({resumed} of them by an earlier start of this run)." if resumed else "."
    for (model, method), subject in run.subjects.items():
        gains = [speedup(c, cells) for c in cells.values() if (c["model"], c["method"]) == (model, method)]
        known = [g for g in gains if g is not None]
        dense = run.subjects.get((model, DENSE))
        if method == DENSE or dense is None or not known:
            continue
        text = (
            f"- **{model}, {method}**: x{min(g.ratio for g in known):.2f} to x{max(g.ratio for g in known):.2f} the"
            " speed of dense with"
            f" {human(subject['footprint']['parameters'])} of {human(dense['footprint']['parameters'])} parameters"
        )
        if subject["perplexity"] and dense["perplexity"]:
            text += f"; perplexity {_perplexity(dense)} -> {_perplexity(subject)}"
        slower = sum(g.high < 1 for g in known)
        lines.append(text + (f"; **slower than dense in {slower} of {len(known)} cells**." if slower else "."))
    return lines


def _model_sections(found: Findings, device: Device | None) -> list[str]:
    cells = found.cells
    models = dict.fromkeys(c["model"] for c in cells.values())
    note = _COLUMNS if device is None else f"{_COLUMNS} {_LIMIT.format(_peaks(device))}"
    return [
        f"## {model}\n\n{_filled([_row(c, found, device) for c in cells.values() if c['model'] == model])}\n\n{note}"
        for model in models
    ]


_COLUMNS = (
    "Latency: median of one whole generate, with its 95 % interval (the whole range below six repeats); by the protocol"
    " `paper` mean and standard deviation. TTFT: time to the first token. TPOT: time for each token after it. First"
    " run: where it took half as long again or more, as it compiled or chose kernels. vs dense: how many times faster;"
    " ~ where the intervals of both overlap."
)
_LIMIT = (
    "% of limit: the least time in which this device could read the weights and the cache, and do the products ({}, as"
    " the canary saw it), over the latency."
)


def _peaks(device: Device) -> str:
    return f"{human(device.bandwidth, 'B/s')}, {human(device.flops, 'FLOP/s')}"


def _filled(rows: Sequence[dict[str, str]]) -> str:
    """A table without the columns that say nothing anywhere."""
    return tabulated([{k: v for k, v in row.items() if any(other[k] for other in rows)} for row in rows])


def _row(cell: Record, found: Findings, device: Device | None) -> dict[str, str]:
    row = dict.fromkeys(_FIGURES, "")
    if cell["status"] == "ok":
        time, gain, step = summarise(cell["latency_s"]), speedup(cell, found.cells), tpot(cell)
        least = limit.least_of(cell, found.run.subjects, device) if device else None
        row |= {
            "latency (s)": _latency(cell),
            "tokens/s": f"{throughput(cell):.1f}",
            "TTFT (ms)": f"{1e3 * summarise(cell['ttft_s']).centre:.1f}" if cell["ttft_s"] else "",
            "TPOT (ms)": "" if step is None else f"{1e3 * step:.2f}",
            "first run (s)": _first_run(cell),
            "peak memory": human(cell["peak_bytes"], "B") if cell["peak_bytes"] else "",
            "J/token": f"{cell['joules']:.3g}" if cell.get("joules") else "",
            "% of limit": "" if least is None else f"{least / time.centre:.0%}",
            "vs dense": "" if gain is None or cell["method"] == DENSE else _against_dense(gain),
        }
    else:
        row["latency (s)"] = "out of memory" if cell["status"] == "oom" else cell["status"]
    name = cell["id"].removeprefix(cell["model"] + "/")
    return {"cell": name} | row | {"verdict": _verdict(found.verdicts[cell["id"]])}


_FIGURES = ("latency (s)", "tokens/s", "TTFT (ms)", "TPOT (ms)", "first run (s)", "peak memory", "J/token",
            "% of limit", "vs dense")  # fmt: skip


def _first_run(cell: Record) -> str:
    """Seconds of the first warm-up, where it took much longer than a run does."""
    first = cell["warmup_s"][0] if cell["warmup_s"] else 0.0
    return f"{first:.1f}" if first > SLOW_FIRST * summarise(cell["latency_s"]).centre else ""


def _latency(cell: Record) -> str:
    if cell.get("protocol") == "paper":
        return f"{fmean(cell['latency_s']):.3f} \N{PLUS-MINUS SIGN} {stdev(cell['latency_s']):.3f}"
    time = summarise(cell["latency_s"])
    return f"{time.centre:.3f} ({time.low:.3f} to {time.high:.3f})"


def _verdict(judgement: Judgement) -> str:
    """`slower (+10.3%)`."""
    change = judgement.change
    return judgement.verdict if change is None else f"{judgement.verdict} ({change:+.1%})"


def _against_dense(gain: Comparison) -> str:
    """`x1.42`; marked where it is slower, or where the intervals do not tell."""
    mark = " **slower**" if gain.high < 1 else " ~" if gain.low <= 1 else ""
    return f"x{gain.ratio:.2f}{mark}"


def _footprints(run: Run) -> str:
    rows = []
    for subject in run.subjects.values():
        cost = subject["footprint"]
        rows.append(
            {
                "model": subject["model"],
                "method": subject["method"],
                "layers": str(cost["layers"]),
                "KV groups": str(cost["kv_groups"]),
                "channels": f"{cost['channels']:,}",
                "parameters": f"{cost['parameters']:,}",
                "weights": human(cost["weight_bytes"], "B"),
                "FLOPs/token": human(cost["flops_per_token"], "FLOP"),
                "KV cache/token": human(cost["kv_bytes_per_token"], "B"),
                "operators/token": f"{cost['operator_calls_per_token']:,}",
                "perplexity": _perplexity(subject),
            }
        )
    text = tabulated(rows)
    measured = next((s["perplexity"] for s in run.subjects.values() if s["perplexity"]), None)
    if measured is not None:
        tokens = measured["tokens"]
        text += (
            f"\n\nPerplexity: {measured['predictions']:,} predictions on {tokens['text']}, windows of"
            f" {tokens['windows'][1]} tokens, {'each starting with BOS' if tokens['bos'] else 'no BOS'}."
        )
    return text


def _perplexity(subject: Record) -> str:
    return f"{subject['perplexity']['value']:.2f}" if subject["perplexity"] else ""


def standing(found: Findings, *, checks: bool = True) -> list[str]:
    """How the cells stand against what they are compared with, and, with `checks`, the whole run."""
    against = found.run.start.get("against")
    if against is None and not found.baseline.nights:
        others = found.baseline.others()
        lines = ["No baseline for this machine and grid yet: --perf-update --perf-reason TEXT accepts a run."]
        if others:
            lines.append(f"- other machines have one, with which nothing here is compared: {', '.join(others)}")
    else:
        count = Counter(j.verdict for j in found.verdicts.values())
        what = against or found.baseline.name
        lines = [f"Against {what}: " + (", ".join(f"{n} {v}" for v, n in count.items()) or "no cell to compare") + "."]
        lines += [f"- {j.message}" for j in found.verdicts.values() if j.verdict != "same"]
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


def _environment(run: Run, baseline: Baseline) -> str:
    software: dict[str, Any] = run.start["software"]
    rows = [
        {"": "machine", "this run": run.start["machine"]},
        *({"": k, "this run": str(v)} for k, v in software.items()),
    ]
    if baseline.nights:
        for row in rows[1:]:
            row["baseline"] = str(baseline.software.get(row[""], ""))
    return tabulated(rows)
