"""The report's tables: cells, before and after, footprints, the software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from slimcore.bench.grid import limit
from slimcore.bench.grid.cells import Key
from slimcore.bench.grid.limit import Counted, Device
from slimcore.bench.judge.baseline import Baseline
from slimcore.bench.judge.gains import Time, times
from slimcore.bench.judge.gate import Judgement
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.records import Measurement, Subject
from slimcore.bench.records.results import Run
from slimcore.bench.statistics import summarise
from slimcore.units import human

SLOW_FIRST = 1.5  # times a run
APART = "\N{DAGGER}"
APART_NOTE = (
    f"{APART} dense was measured apart from this method, not in turn with it: what the machine did in between is in the"
    " ratio."
)


def of_cells(
    cells: Sequence[Measurement],
    verdicts: Mapping[str, Judgement],
    subjects: Mapping[Key, Counted],
    device: Device | None,
) -> str:
    """A row a cell, compared with dense among them, and what the columns mean."""
    known = times(cells)
    rows = [_row(c, known.get(c.id), subjects, device) | {"verdict": verdict_of(verdicts[c.id])} for c in cells]
    note = _COLUMNS if device is None else f"{_COLUMNS} {_LIMIT.format(_peaks(device))}"
    if any(time.gain and not time.paired for time in known.values()):
        note += f" {APART_NOTE}"
    return f"{_filled(rows)}\n\n{note}"


def of_tests(tests: Sequence[Measurement], verdicts: Mapping[str, Judgement]) -> str:
    """A row a test that times code of its own, and what the columns mean."""
    rows = [
        {
            "test": one.id,
            "time (s)": _time(one) if one.ran else status_of(one),
            "samples": str(len(one.times.latency_s)) if one.ran else "",
            "verdict": verdict_of(verdicts[one.id]),
        }
        for one in tests
    ]
    return f"{_filled(rows)}\n\n{_TIMED}"


def _time(one: Measurement) -> str:
    time = summarise(one.times.latency_s)
    return f"{time.centre:.4g} ({time.low:.4g} to {time.high:.4g})"


_TIMED = "Time: median of one call, with its 95 % interval (the whole range below six samples)."
_COLUMNS = (
    "Latency: median of one whole generate, with its 95 % interval (the whole range below six repeats); by the protocol"
    " `paper` mean and standard deviation; ! where a larger batch took less, which is more work: something disturbed"
    " this one. TTFT: time to the first token. TPOT: time for each token after it, median and 99th percentile."
    " Launch: what a GPU's host took to launch an operator beside the cell; eager times follow it. First run: where it"
    " took half as long again or more, as it compiled or chose kernels. vs dense: how many times faster; ~ where"
    " that is not shown: the interval holds 1, or would if each batch took no longer than a larger one."
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


def _row(one: Measurement, time: Time | None, subjects: Mapping[Key, Counted], device: Device | None) -> dict[str, str]:
    row = dict.fromkeys(_FIGURES, "")
    if time is None:
        row["latency (s)"] = status_of(one)
    else:
        least = limit.least_of(one.cell, subjects, device) if device else None
        row |= {
            "latency (s)": _latency(one) + (" !" if time.disturbed else ""),
            "tokens/s": f"{one.throughput:.1f}",
            "TTFT (ms)": f"{1e3 * summarise(one.ttft_s).centre:.1f}" if one.ttft_s else "",
            "TPOT (ms)": _tpot(one),
            "launch (us)": _launch(one),
            "first run (s)": _first_run(one),
            "peak memory": human(one.peak_bytes, "B") if one.peak_bytes else "",
            "J/token": f"{one.joules:.3g}" if one.joules else "",
            "% of limit": "" if least is None else f"{least / one.latency:.0%}",
            "vs dense": against_dense(time),
        }
    return {"cell": one.id.removeprefix(f"{one.cell.model}/")} | row


_FIGURES = (
    "latency (s)", "tokens/s", "TTFT (ms)", "TPOT (ms)", "launch (us)", "first run (s)", "peak memory", "J/token",
    "% of limit", "vs dense",
)  # fmt: skip


def _tpot(one: Measurement) -> str:
    """`7.10 (p99 9.30)`; empty where it is not known, or the first token is said to have taken longer than all."""
    if one.tpot_s is None or (one.ttft_s and summarise(one.ttft_s).centre >= one.latency):
        return ""
    middle, _, highest = one.tpot_s
    return f"{1e3 * middle:.2f} (p99 {1e3 * highest:.2f})"


def _launch(one: Measurement) -> str:
    """Microseconds that a GPU's host took to launch an operator, beside the cell."""
    read = [reading[2] for reading in one.readings if len(reading) > 2]
    return f"{1e6 * fmean(read) / limit.LAUNCHES:.1f}" if read else ""


def _first_run(one: Measurement) -> str:
    """Seconds of the first warm-up, where it took much longer than a run does."""
    first = one.warmup_s[0] if one.warmup_s else 0.0
    return f"{first:.1f}" if first > SLOW_FIRST * one.latency else ""


def _latency(one: Measurement) -> str:
    samples = one.times.latency_s
    if one.cell.protocol == "paper" and len(samples) > 1:
        return f"{fmean(samples):.3f} \N{PLUS-MINUS SIGN} {stdev(samples):.3f}"
    time = summarise(samples)
    return f"{time.centre:.3f} ({time.low:.3f} to {time.high:.3f})"


def status_of(one: Measurement) -> str:
    """Of a cell that did not run."""
    return "out of memory" if one.status == "oom" else one.status


def verdict_of(judgement: Judgement) -> str:
    """`slower (+10.3%)`."""
    change = judgement.change
    return judgement.verdict if change is None else f"{judgement.verdict} ({change:+.1%})"


def against_dense(time: Time) -> str:
    """`x1.42`; marked where it is slower, where that is not shown, where dense was not measured in turn."""
    gain = time.gain
    if gain is None:
        return ""
    how = " **slower**" if gain.high < 1 else "" if gain.shown else " ~"
    return f"x{gain.ratio:.2f}{'' if time.paired else APART}{how}"


def comparison(cells: Mapping[str, Measurement], verdicts: Mapping[str, Judgement], baseline: Baseline) -> str:
    """A row a cell: before, now, verdict."""
    return tabulated(
        [
            {
                "cell": i,
                "old (s)": accepted_of(baseline, i),
                "new (s)": f"{one.latency:.4g}" if one.ran else status_of(one),
                "verdict": verdict_of(verdicts[i]),
            }
            for i, one in cells.items()
        ]
    )


def accepted_of(baseline: Baseline, cell: str) -> str:
    """The median over the accepted nights of a cell, in seconds, or its status; empty where there are none."""
    known = baseline.references.get(cell)
    if known is None:
        return ""
    return f"{known.latency:.4g}" if known.nights else known.status


def footprints(run: Run) -> str:
    """A row a subject: what it is, what it costs, its perplexity."""
    rows = [
        {
            "model": subject.model,
            "method": subject.method,
            "dtype": subject.dtype,
            "layers": str(subject.costs.layers),
            "KV groups": str(subject.costs.kv_groups),
            "channels": f"{subject.costs.channels:,}",
            "parameters": f"{subject.costs.parameters:,}",
            "weights": human(subject.costs.weight_bytes, "B"),
            "FLOPs/token": human(subject.costs.flops_per_token, "FLOP"),
            "KV cache/token": human(subject.costs.kv_bytes_per_token, "B"),
            "operators/token": f"{subject.costs.operator_calls_per_token:,}",
            "perplexity": perplexity_of(subject),
        }
        for subject in run.subjects.values()
    ]
    text = tabulated(rows)
    measured = next((s.perplexity for s in run.subjects.values() if s.perplexity), None)
    if measured is not None:
        tokens = measured.tokens
        text += (
            f"\n\nPerplexity: {measured.predictions:,} predictions on {tokens['text']}, windows of"
            f" {tokens['windows'][1]} tokens, {'each starting with BOS' if tokens['bos'] else 'no BOS'}."
        )
    return text


def perplexity_of(subject: Subject) -> str:
    """Two digits, or `inf` beyond any float; empty where it was not measured."""
    if subject.perplexity is None:
        return ""
    value = subject.perplexity.value
    return "inf" if value is None else f"{value:.2f}"


def environment(run: Run, baseline: Baseline) -> str:
    """The software of the run, beside that of the newest night."""
    rows = [{"": "machine", "this run": run.start.machine}]
    rows += [{"": name, "this run": str(value)} for name, value in run.start.software.items()]
    if baseline.nights:
        for row in rows[1:]:
            row["baseline"] = str(baseline.software.get(row[""], ""))
    return tabulated(rows)
