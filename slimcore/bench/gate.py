"""Measurement and baseline -> verdict. No torch, no pytest.

First rule: a cell is slower (faster) where its median latency is above (below) the accepted one by more than the
threshold of its device and the two intervals do not overlap. Time verdicts are told, and do not fail a cell yet; a
changed status does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slimcore.bench.statistics import Comparison, compare, summarise

Verdict = Literal["same", "faster", "slower", "no baseline", "status changed"]

# The median of unchanged code wanders from run to run: on two shared CPU cores, by less than 0.30 for 11 cells of 12.
THRESHOLDS = {"cpu": 0.30, "cuda": 0.10}


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what a person needs to act on it."""

    verdict: Verdict
    message: str
    passes: bool = True
    comparison: Comparison | None = None


def judge(cell: Mapping[str, Any], accepted: Mapping[str, Any] | None) -> Judgement:
    """Judge one measured cell (a record of results) against its accepted one; None where there is none."""
    status = cell["status"]
    if accepted is None:
        words = f"{cell['id']}: {status}, no accepted measurement to compare with{_detail(cell)}"
        return Judgement("no baseline", words, passes=status != "error")
    if status != accepted["status"]:
        # oom -> ok is good news; everything else takes something away.
        return Judgement(
            "status changed",
            f"{cell['id']}: {accepted['status']} -> {status}{_detail(cell)}",
            passes=status == "ok",
        )
    if status != "ok":
        return Judgement("same", f"{cell['id']}: {status}, as accepted")
    new, old = summarise(cell["latency_s"]), summarise(accepted["latency_s"])
    ratio, threshold = compare(new, old), THRESHOLDS[cell["device"]]
    verdict: Verdict = "same"
    if ratio.ratio > 1 + threshold and ratio.low > 1:
        verdict = "slower"
    elif ratio.ratio < 1 / (1 + threshold) and ratio.high < 1:
        verdict = "faster"
    return Judgement(
        verdict,
        f"{cell['id']}: {verdict}, {old.centre:.4g} s -> {new.centre:.4g} s"
        f" (x{ratio.ratio:.3f}, between x{ratio.low:.3f} and x{ratio.high:.3f})",
        comparison=ratio,
    )


def _detail(cell: Mapping[str, Any]) -> str:
    return f"\n{cell['detail']}" if cell.get("detail") else ""
