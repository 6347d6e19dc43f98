"""What an A/A run shows: how often the same code was called slower, each cell's noise, and what could be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from slimcore.bench.judge.gate import SCREEN, Judgement, ratios
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.results import Record
from slimcore.bench.statistics import MIDDLE, detectable, repeats_for, robust_deviation


def described(cells: Mapping[str, Record], verdicts: Mapping[str, Judgement]) -> str:
    """The same code against itself, cell by cell: what the rule said, and what it could have seen."""
    alarms = sum(v.verdict == "slower" for v in verdicts.values())
    runs: dict[int, bool] = {}
    for i, cell in cells.items():
        runs[cell["round"]] = runs.get(cell["round"], False) or verdicts[i].verdict == "slower"
    rows = []
    for name in dict.fromkeys(i.partition("#")[0] for i in cells):
        own = [c for i, c in cells.items() if i.partition("#")[0] == name and c["status"] == "ok" and "against_s" in c]
        if len(own) < 2:
            continue
        levels = [ratios(c) for c in own]
        scatter = median(x.scatter for x in levels)
        repeats = median(x.count for x in levels)
        between = robust_deviation([x.centre for x in levels])
        process = math.sqrt(max(0.0, between**2 - MIDDLE * scatter**2 / repeats))
        reach = repeats_for(0.05, SCREEN, scatter, process)
        rows.append(
            {
                "cell": name,
                "runs": str(len(own)),
                "called slower": str(sum(verdicts[c["id"]].verdict == "slower" for c in own)),
                "inconclusive": str(sum(verdicts[c["id"]].verdict == "inconclusive" for c in own)),
                "of one pair": f"{scatter:.1%}",
                "of a run": f"{between:.1%}",
                "detectable": f"{detectable(between, SCREEN):.1%}",
                "pairs in a run": f"{repeats:g}",
                "pairs for 5 %": "processes differ too much" if reach is None else str(reach),
            }
        )
    alarmed = sum(runs.values())
    text = f"The same code against itself: {alarms} of {len(cells)} comparisons called slower"
    text += f", in {alarmed} of {len(runs)} runs."
    if not rows:
        return f"{text}\n\nA cell's noise shows from two runs on."
    return (
        f"{text}\n\n{tabulated(rows)}\n\nStandard deviations: of one pair's ratio within two processes, of a whole"
        " run's. Detectable: the slowdown that one run suspects 95 times in 100."
    )
