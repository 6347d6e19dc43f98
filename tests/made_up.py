"""A run made up: lines of results as the suite writes them, without measuring anything."""

import math

from slimcore.bench.judge.judging import judge_of
from slimcore.bench.records import results
from slimcore.bench.report.conclusion import find

SOFTWARE = {"torch": "2.13.0", "commit": "abc"}


def make_run(
    folder, batches, models=("llama-7b",), *, oom_from=None, factor=0.5, outputs=(128,), night=1, canary=1.0, **start
):
    """A run of dense and Ours, Ours taking `factor` of dense's time, dense without memory from M `oom_from` on."""
    folder.mkdir(parents=True)
    run = results.Run(folder)
    cells = [
        {
            "kind": "cell", "id": f"{model}/{method}/i{i}-o{o}/m{m}/eager-fp16", "model": model, "method": method,
            "round": 1, "input_tokens": i, "output_tokens": o, "batch": m, "engine": "eager", "dtype": "fp16",
            "device": "cuda",
            "status": "oom" if method == "dense" and oom_from and m >= oom_from else "ok", "detail": "",
            "peak_bytes": 10**9 * m, "warmup_s": [], "canary": [math.log(canary), 0.001],
            "ttft_s": [0.1 * scale] * 5,
            "latency_s": [scale * canary * (0.02 * o + 0.01 * m) * (1 + 0.01 * n) for n in range(5)],
        }
        for model in models
        for method, scale in (("dense", 1.0), ("depth-ppl:9L", factor))
        for o in outputs
        for i in (12, 82)
        for m in batches
    ]  # fmt: skip
    head = {
        "kind": "run", "schema": results.SCHEMA, "grid": "gpu", "device": "cuda", "machine": "h100", "against": None,
        "software": SOFTWARE, "started": f"2026-01-{night:02}T00:00:00+0000", "cells": [c["id"] for c in cells],
        "grid_cells": [c["id"] for c in cells],
    }  # fmt: skip
    results.append(run, head | start)
    for model in models:
        for method, label, count in (("dense", "dense", 6_738_415_616), ("depth-ppl:9L", "Ours", 4_916_965_376)):
            ones = ("weight_bytes", "flops_per_token", "kv_bytes_per_token", "kv_groups", "channels",
                    "operator_calls_per_token")  # fmt: skip
            cost = {"layers": 32, "parameters": count} | dict.fromkeys(ones, 1)
            results.append(
                run,
                {"kind": "subject", "model": model, "method": method, "label": label, "footprint": cost,
                 "perplexity": None, "plan": None},
            )  # fmt: skip
    for cell in cells:
        results.append(run, cell)
    return run


def found(run, tmp_path, **options):
    """The run judged against what was accepted below `tmp_path`."""
    return find(run, judge_of(run, tmp_path / "baselines", **options))
