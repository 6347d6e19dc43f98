"""A run made up: lines of results as the suite writes them, without measuring anything."""

import math
from dataclasses import fields, replace

from slimcore.bench.grid.cells import Cell
from slimcore.bench.judge.judging import judge_of
from slimcore.bench.records import results
from slimcore.bench.records.records import SCHEMA, Costs, Measurement, Start, Subject, Times
from slimcore.bench.report.conclusion import Update, accept, find

SOFTWARE = {"torch": "2.13.0", "commit": "abc"}
ONES = dict.fromkeys((f.name for f in fields(Costs)), 1)


def make_run(
    folder, batches, models=("llama-7b",), *, oom_from=None, factor=0.5, outputs=(128,), night=1, canary=1.0,
    weights="w", **start,
):  # fmt: skip
    """A run of dense and Ours, Ours taking `factor` of dense's time, dense without memory from M `oom_from` on."""
    folder.mkdir(parents=True)
    run = results.Run(folder)
    cells = [
        measurement(Cell(model, method, i, o, m, "eager", "fp16", "cuda"), scale, canary)
        if not (method == "dense" and oom_from and m >= oom_from)
        else Measurement(Cell(model, method, i, o, m, "eager", "fp16", "cuda"), "oom")
        for model in models
        for method, scale in (("dense", 1.0), ("depth-ppl:9L", factor))
        for o in outputs
        for i in (12, 82)
        for m in batches
    ]
    ids = tuple(c.id for c in cells)
    head = Start(SCHEMA, "gpu", "cuda", "h100", f"2026-01-{night:02}T00:00:00+0000", SOFTWARE, ids, ids)
    run.append(replace(head, **start))
    for model in models:
        for method, label, count in (("dense", "dense", 6_738_415_616), ("depth-ppl:9L", "Ours", 4_916_965_376)):
            costs = Costs(**(ONES | {"layers": 32, "parameters": count}))
            run.append(Subject(model, method, "fp16", label, weights, costs, "torch 2.13.0"))
    for cell in cells:
        run.append(cell)
    return run


def measurement(cell, scale=1.0, canary=1.0):
    """A cell that takes `scale` times what dense does, on a machine that is slower by the factor `canary`."""
    seconds = scale * canary * (0.02 * cell.output_tokens + 0.01 * cell.batch)
    return Measurement(
        cell,
        "ok",
        times=Times(tuple(seconds * (1 + 0.01 * n) for n in range(5)), (math.log(canary), 0.001)),
        ttft_s=(0.1 * scale,) * 5,
        tpot_s=(0.02 * scale, 0.021 * scale, 0.022 * scale),
        peak_bytes=10**9 * cell.batch,
    )


def change(run, of=lambda measured: True, *, factor=1.0, **fields):
    """Change measurements of a run in memory: `factor` of their latencies, `host` of their times, other fields."""
    for i, one in run.cells.items():
        if of(one):
            host = fields.get("host", one.times.host)
            times = replace(one.times, latency_s=tuple(t * factor for t in one.times.latency_s), host=host)
            more = {name: value for name, value in fields.items() if name != "host"}
            run.cells[i] = replace(one, times=times, **more)


def found(run, tmp_path, **options):
    """The run judged against what was accepted below `tmp_path`."""
    return find(run, judge_of(run, tmp_path / "baselines", **options))


def accepted(tmp_path, count=1, **options):
    """So many nights of the same run, the first one a release."""
    for night in range(1, count + 1):
        made = make_run(tmp_path / f"n{night}", (1, 8), night=night, **options)
        accept(found(made, tmp_path), Update("release", pin=night == 1))
