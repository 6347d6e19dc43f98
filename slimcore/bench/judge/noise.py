"""What an A/A run shows: how often the same code was called slower, each cell's noise, and what could be seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median

from slimcore.bench.judge.gate import Judgement
from slimcore.bench.judge.levels import ratios
from slimcore.bench.judge.rules import SCREEN
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.records import Measurement
from slimcore.bench.statistics import MIDDLE, detectable, repeats_for, robust_deviation


def described(cells: Iterable[Measurement], verdicts: Mapping[str, Judgement]) -> str:
    """The same code against itself, cell by cell: what the rule said, and what it could have seen."""
    cells = list(cells)
    slower = [c for c in cells if verdicts[c.id].verdict == "slower"]
    rounds = {c.cell.round for c in cells}
    rows = []
    for first in dict.fromkeys(replace(c.cell, round=1) for c in cells):
        own = [c for c in cells if replace(c.cell, round=1) == first]
        levels = [ratios(c.against.pairs) for c in own if c.ran and c.against and c.against.status == "ok"]
        if len(levels) < 2:
            continue
        scatter = median(x.scatter for x in levels)
        repeats = median(x.count for x in levels)
        between = robust_deviation([x.centre for x in levels])
        process = math.sqrt(max(0.0, between**2 - MIDDLE * scatter**2 / repeats))
        reach = repeats_for(0.05, SCREEN, scatter, process)
        rows.append(
            {
                "cell": first.id,
                "runs": str(len(levels)),
                "called slower": str(sum(c in slower for c in own)),
                "inconclusive": str(sum(verdicts[c.id].verdict == "inconclusive" for c in own)),
                "of one pair": f"{scatter:.1%}",
                "of a run": f"{between:.1%}",
                "detectable": f"{detectable(between, SCREEN):.1%}",
                "pairs in a run": f"{repeats:g}",
                "pairs for 5 %": "processes differ too much" if reach is None else str(reach),
            }
        )
    text = f"The same code against itself: {len(slower)} of {len(cells)} comparisons called slower"
    text += f", in {len({c.cell.round for c in slower})} of {len(rounds)} runs."
    if not rows:
        return f"{text}\n\nA cell's noise shows from two runs on."
    return (
        f"{text}\n\n{tabulated(rows)}\n\nStandard deviations: of one pair's ratio within two processes, of a whole"
        " run's. Detectable: the slowdown that one run suspects 95 times in 100."
    )
