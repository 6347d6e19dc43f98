"""The report's tables: cells, before and after, footprints, the software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from slimcore.bench.grid import limit
from slimcore.bench.grid.limit import Device
from slimcore.bench.judge.baseline import Baseline
from slimcore.bench.judge.gains import Time, times
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.results import Record, Run, throughput
from slimcore.bench.statistics import Comparison, summarise
from slimcore.units import human

SLOW_FIRST = 1.5  # times a run


def of_cells(
    cells: Sequence[Record],
    verdicts: Mapping[str, Judgement],
    subjects: Mapping[tuple[str, str], Record],
    device: Device | None,
) -> str:
    """A row a cell, compared with dense among them, and what the columns mean."""
    known = times(cells)
    rows = [_row(c, known.get(c["id"]), subjects, device) | {"verdict": verdict_of(verdicts[c["id"]])} for c in cells]
    note = _COLUMNS if device is None else f"{_COLUMNS} {_LIMIT.format(_peaks(device))}"
    return f"{_filled(rows)}\n\n{note}"


_COLUMNS = (
    "Latency: median of one whole generate, with its 95 % interval (the whole range below six repeats); by the protocol"
    " `paper` mean and standard deviation; ! where a larger batch took less, which is more work: something disturbed"
    " this one. TTFT: time to the first token. TPOT: time for each token after it."
    " Launch: what a GPU's host took to launch an operator beside the cell; eager times follow it. First run: where it"
    " took half as long again or more, as it compiled or chose kernels. vs dense: how many times faster; ~ where"
    " that is not shown: the intervals overlap, or would if each batch took no longer than a larger one."
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


def _row(
    cell: Record, time: Time | None, subjects: Mapping[tuple[str, str], Record], device: Device | None
) -> dict[str, str]:
    row = dict.fromkeys(_FIGURES, "")
    if time is not None:
        step = tpot(cell)
        least = limit.least_of(cell, subjects, device) if device else None
        row |= {
            "latency (s)": _latency(cell) + (" !" if time.disturbed else ""),
            "tokens/s": f"{throughput(cell):.1f}",
            "TTFT (ms)": f"{1e3 * summarise(cell['ttft_s']).centre:.1f}" if cell["ttft_s"] else "",
            "TPOT (ms)": "" if step is None else f"{1e3 * step:.2f}",
            "launch (us)": _launch(cell),
            "first run (s)": _first_run(cell),
            "peak memory": human(cell["peak_bytes"], "B") if cell["peak_bytes"] else "",
            "J/token": f"{cell['joules']:.3g}" if cell.get("joules") else "",
            "% of limit": "" if least is None else f"{least / time.measured.centre:.0%}",
            "vs dense": "" if time.gain is None else against_dense(time.gain),
        }
    else:
        row["latency (s)"] = "out of memory" if cell["status"] == "oom" else cell["status"]
    name = cell["id"].removeprefix(cell["model"] + "/")
    return {"cell": name} | row


_FIGURES = (
    "latency (s)", "tokens/s", "TTFT (ms)", "TPOT (ms)", "launch (us)", "first run (s)", "peak memory", "J/token",
    "% of limit", "vs dense",
)  # fmt: skip


def _launch(cell: Record) -> str:
    """Microseconds that a GPU's host took to launch an operator, beside the cell."""
    read = [launches for _, _, *more in cell.get("canary_s", []) for launches in more]
    return f"{1e6 * fmean(read) / limit.LAUNCHES:.1f}" if read else ""


def _first_run(cell: Record) -> str:
    """Seconds of the first warm-up, where it took much longer than a run does."""
    first = cell["warmup_s"][0] if cell["warmup_s"] else 0.0
    return f"{first:.1f}" if first > SLOW_FIRST * summarise(cell["latency_s"]).centre else ""


def _latency(cell: Record) -> str:
    if cell.get("protocol") == "paper":
        return f"{fmean(cell['latency_s']):.3f} \N{PLUS-MINUS SIGN} {stdev(cell['latency_s']):.3f}"
    time = summarise(cell["latency_s"])
    return f"{time.centre:.3f} ({time.low:.3f} to {time.high:.3f})"


def verdict_of(judgement: Judgement) -> str:
    """`slower (+10.3%)`."""
    change = judgement.change
    return judgement.verdict if change is None else f"{judgement.verdict} ({change:+.1%})"


def against_dense(gain: Comparison) -> str:
    """`x1.42`; marked where it is slower, or where the intervals do not tell."""
    return f"x{gain.ratio:.2f}{' **slower**' if gain.high < 1 else '' if gain.shown else ' ~'}"


def comparison(cells: Mapping[str, Record], verdicts: Mapping[str, Judgement], baseline: Baseline) -> str:
    """A row a cell: before, now, verdict."""
    rows = []
    for i, cell in cells.items():
        known = baseline.references.get(i)
        before = [s for night in known.nights for s in night["latency_s"]] if known else []
        rows.append(
            {
                "cell": i,
                "old (s)": f"{summarise(before).centre:.4g}" if before else known.status if known else "",
                "new (s)": f"{summarise(cell['latency_s']).centre:.4g}" if cell["status"] == "ok" else cell["status"],
                "verdict": verdict_of(verdicts[i]),
            }
        )
    return tabulated(rows)


def footprints(run: Run) -> str:
    """A row a subject: what it is, what it costs, its perplexity."""
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
                "perplexity": perplexity_of(subject),
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


def perplexity_of(subject: Record) -> str:
    """Two digits; empty where it was not measured."""
    return f"{subject['perplexity']['value']:.2f}" if subject["perplexity"] else ""


def environment(run: Run, baseline: Baseline) -> str:
    """The software of the run, beside that of the newest night."""
    software: dict[str, Any] = run.start["software"]
    rows = [
        {"": "machine", "this run": run.start["machine"]},
        *({"": k, "this run": str(v)} for k, v in software.items()),
    ]
    if baseline.nights:
        for row in rows[1:]:
            row["baseline"] = str(baseline.software.get(row[""], ""))
    return tabulated(rows)


def tpot(cell: Record) -> float | None:
    """Seconds a token after the first: median over pairs of (latency - TTFT) / (N - 1); None where there is none."""
    steps = cell["output_tokens"] - 1
    if steps < 1 or not cell["ttft_s"]:
        return None
    pairs = zip(cell["latency_s"], cell["ttft_s"], strict=True)
    return float(pd.Series([(whole - first) / steps for whole, first in pairs]).median())
