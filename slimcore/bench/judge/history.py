"""How the cells of a machine went over its accepted nights, and where they changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from slimcore.bench.judge.baseline import Baseline
from slimcore.bench.judge.levels import canary_of, corrected
from slimcore.bench.judge.nights import Night
from slimcore.bench.judge.rules import RULES
from slimcore.bench.statistics import shrunk, step_deviation, summarise
from slimcore.errors import UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "history"
PANELS = 12  # of one figure
PENALTY = 5.0  # of a further change, in variances and logarithms of the number of nights


@dataclass(frozen=True)
class History:
    """One cell over the nights on which it had a time."""

    cell: str
    nights: Sequence[Night]  # oldest first
    levels: Sequence[float]  # logarithms of seconds; the canary's shift from its own middle is taken off
    changes: Sequence[int]  # positions in `nights` at which another level begins

    def steps(self) -> Mapping[int, float]:
        """Share by which each change made the cell slower."""
        edges = [0, *self.changes, len(self.levels)]
        middles = [median(self.levels[a:b]) for a, b in pairwise(edges)]
        return {n: math.expm1(b - a) for n, a, b in zip(self.changes, middles, middles[1:], strict=False)}


def histories(baseline: Baseline, pattern: str = "*") -> list[History]:
    """Of the cells that `pattern` is the id of, or matches with * and ?. Raises UnknownNameError where none does."""
    cells = sorted({cell for night in baseline.nights for cell in night.cells})
    # An id may have brackets, as a folder's name, which a pattern takes for a choice of letters.
    chosen = [pattern] if pattern in cells else [cell for cell in cells if fnmatchcase(cell, pattern)]
    if not chosen:
        raise UnknownNameError("cell", pattern, cells)
    return [found for cell in chosen if (found := _history(baseline, cell)).nights]


def changes(levels: Sequence[float], expected: float) -> list[int]:
    """Positions at which another level begins: PELT (Killick, Fearnhead and Eckley 2012) on squared distances.

    `expected`: the deviation from night to night that is expected, beside the levels' own.
    """
    if len(levels) < 4:
        return []
    import numpy as np
    import ruptures

    deviation = shrunk(step_deviation(levels), len(levels) - 1, expected)
    fitted = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(np.asarray(levels))
    found = fitted.predict(pen=PENALTY * deviation**2 * math.log(len(levels)))
    return [int(n) for n in found[:-1]]


def table(found: Sequence[History]) -> list[dict[str, str]]:
    """A row a night for one cell; a row a cell for several."""
    if len(found) == 1:
        steps = found[0].steps()
        return [
            {
                "night": night.started[:16].replace("T", " "),
                "commit": str(night.software.get("commit") or ""),
                "latency (s)": f"{summarise(night.cells[found[0].cell].times.latency_s).centre:.4g}",
                "without the machine's shift (s)": f"{math.exp(level):.4g}",
                "change": f"{steps[n]:+.1%}" if n in steps else "",
                "reason": night.reason,
            }
            for n, (night, level) in enumerate(zip(found[0].nights, found[0].levels, strict=True))
        ]
    return [
        {
            "cell": one.cell,
            "nights": str(len(one.nights)),
            "first (s)": f"{math.exp(one.levels[0]):.4g}",
            "latest (s)": f"{math.exp(one.levels[-1]):.4g}",
            "changes": "; ".join(f"{one.nights[n].started[:10]} {step:+.1%}" for n, step in one.steps().items()),
        }
        for one in found
    ]


def draw(found: Sequence[History], folder: Path) -> Path:
    """Draw up to PANELS cells, those that changed most first, as PNG and SVG; the PNG's path."""
    from matplotlib.figure import Figure

    chosen = sorted(found, key=lambda one: -max(map(abs, one.steps().values()), default=0.0))[:PANELS]
    columns = min(2, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(6.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for one, panel in zip(chosen, panels, strict=False):
        _draw(panel, one)
    for panel in panels:  # those that are left
        panel.set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    png = folder / f"{FIGURE}.png"
    figure.savefig(png, dpi=160)
    figure.savefig(png.with_suffix(".svg"))
    return png


def _history(baseline: Baseline, cell: str) -> History:
    nights = [n for n in baseline.nights if cell in n.cells and n.cells[cell].status == "ok"]
    times = [n.cells[cell].times for n in nights]
    usual = median(canary_of(t).centre for t in times) if times else 0.0
    levels = [corrected(t).centre + usual for t in times]
    return History(cell, nights, levels, changes(levels, RULES[baseline.device].night))


def _draw(panel: Axes, one: History) -> None:
    at = range(len(one.nights))
    times = [summarise(night.cells[one.cell].times.latency_s) for night in one.nights]
    panel.plot(at, [t.centre for t in times], ".", color="#999999", markersize=4, label="as measured")
    panel.plot(at, [math.exp(x) for x in one.levels], "o", color="#0072B2", markersize=4, label="machine's shift off")
    edges = [0, *one.changes, len(one.levels)]
    for a, b in pairwise(edges):
        panel.hlines(math.exp(median(one.levels[a:b])), a - 0.4, b - 0.6, color="#0072B2", linewidth=1.2)
    for n, step in one.steps().items():
        panel.axvline(n - 0.5, color="#D55E00", linewidth=1, linestyle="--")
        words = f"{step:+.1%} from {one.nights[n].software.get('commit') or one.nights[n].started[:10]}"
        panel.annotate(words, (n - 0.5, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
                       textcoords="offset points", fontsize=7, va="top", color="#D55E00")  # fmt: skip
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.9 * math.exp(min(one.levels))), max(high, 1.15 * math.exp(max(one.levels))))
    step = max(1, len(one.nights) // 6)
    panel.set_xticks(list(at)[::step], [one.nights[n].started[:10] for n in at][::step], fontsize=7)
    panel.set_ylabel("latency (s)")
    panel.set_title(one.cell, fontsize=9)
    panel.grid(visible=True, linewidth=0.4, alpha=0.5)
    panel.legend(fontsize=7, frameon=False, loc="lower left", ncols=2)
