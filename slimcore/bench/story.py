"""What a run says of the published figure's reading: Ours above dense, width below Ours, larger batches, plateaus.

Kim et al. 2024, arXiv 2402.02834, figure 1 and section 4: depth pruning speeds generation up where memory's bandwidth
bounds it, width pruning does not, and a smaller model has room for larger batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slimcore.bench.cell import DENSE, parse_method
from slimcore.bench.markdown import tabulated
from slimcore.bench.results import Record, grouped, throughput
from slimcore.bench.statistics import compare, summarise

PLATEAU = 1.1  # a doubled batch that gives less than this more is on it


def told(cells: Sequence[Record]) -> str:
    """Tables of what pruning bought, panel by panel, and of the reading; empty without dense and another method.

    Each engine has panels and readings of its own: whether they hold where nothing is launched by Python is a finding.
    """
    rows: list[dict[str, str]] = []
    reading: list[dict[str, str]] = []
    first = [c for c in cells if c["round"] == 1]
    ways = grouped(first, "engine", "dtype")
    for way in ways:
        held: dict[str, list[bool]] = {}
        engine = {"engine": f"{way[0]['engine']} {way[0]['dtype']}"} if len(ways) > 1 else {}
        for panel in grouped(way, "model", "input_tokens", "output_tokens"):
            ladders = {own[0]["method"]: {c["batch"]: c for c in own} for own in grouped(panel, "method")}
            if DENSE in ladders and len(ladders) > 1:
                one = panel[0]
                name = f"{one['model']}, {one['input_tokens']} in, {one['output_tokens']} out"
                rows += [{"panel": name} | engine | row for row in _rows(ladders, held)]
        reading += [
            {"reading": claim} | engine | {"holds in": f"{sum(panels)} of {len(panels)} panels"}
            for claim, panels in held.items()
        ]
    return f"{tabulated(rows)}\n\n{_NOTE}\n\n{tabulated(reading)}" if rows else ""


def side_by_side(cells: Sequence[Record]) -> str:
    """A table of tokens a second by engine, where a cell has a time by several; empty where none has."""
    rows = []
    for alike in grouped(cells, "model", "method", "input_tokens", "output_tokens", "batch", "dtype", "round"):
        ran = [c for c in alike if c["status"] == "ok"]
        if len(ran) > 1:
            first = throughput(ran[0])
            speeds = [(c["engine"], throughput(c)) for c in ran]
            rows.append(
                {"cell": ran[0]["id"].rpartition("/")[0]}
                | {engine: f"{speed:,.1f} (x{speed / first:.2f})" for engine, speed in speeds}
            )
    return tabulated(rows) if rows else ""


_NOTE = (
    "vs dense: throughput at equal M, the smallest and the largest that both have. Largest M: of those measured"
    " that fit; + where nothing was too large. Plateau: the M from which more rows give less than a tenth more. Best:"
    " most tokens/s of the method at any M, over dense's. The published reading, in this run:"
)
_DEPTH = "depth pruning is above dense at every M"
_WIDTH = "width methods are below depth pruning at the smallest M"
_STILL = "width methods do not speed generation up at the smallest M (within 5 %)"
_LARGER = "a larger M fits after pruning"
_ALIGNED = "multiples of 64 make a width method faster"

Ladder = Mapping[int, Record]  # batch -> cell, of one series of a panel


def _rows(ladders: Mapping[str, Ladder], held: dict[str, list[bool]]) -> list[dict[str, str]]:
    dense = ladders[DENSE]
    speeds = {m: _speeds(ladder) for m, ladder in ladders.items()}
    depth = next((m for m in ladders if _kind(m) == "depth"), None)
    widths = [m for m in ladders if _kind(m) == "width" and "x" not in m.partition(":")[2]]
    rows = []
    for method, ladder in ladders.items():
        gains = [new / old for new, old in _shared(speeds[method], speeds[DENSE])]
        best = max(speeds[method].values(), default=0.0) / max(speeds[DENSE].values(), default=1.0)
        rows.append(
            {
                "method": method,
                "vs dense": "" if method == DENSE or not gains else f"x{gains[0]:.2f} to x{gains[-1]:.2f}",
                "largest M": _largest(ladder),
                "plateau": _plateau(speeds[method]),
                "best": "" if method == DENSE or not speeds[method] else f"x{best:.2f}",
            }
        )
    if depth and (shared := _shared(speeds[depth], speeds[DENSE])):
        held.setdefault(_DEPTH, []).append(all(new > old for new, old in shared))
    smallest = min(dense)
    if widths and all(smallest in speeds[m] for m in (DENSE, *widths)):
        if depth and smallest in speeds[depth]:
            held.setdefault(_WIDTH, []).append(all(speeds[m][smallest] < speeds[depth][smallest] for m in widths))
        times = {m: summarise(ladders[m][smallest]["latency_s"]) for m in (DENSE, *widths)}
        held.setdefault(_STILL, []).append(all(compare(times[DENSE], times[m]).ratio < 1.05 for m in widths))
    if any(c["status"] == "oom" for c in dense.values()):
        held.setdefault(_LARGER, []).append(
            any(max(speeds[m], default=0) > max(speeds[DENSE], default=0) for m in ladders if m != DENSE)
        )
    for method in ladders:
        plain, x, _ = method.rpartition("x")
        if x and plain in speeds and (shared := _shared(speeds[method], speeds[plain])):
            held.setdefault(_ALIGNED, []).append(all(new > old for new, old in shared))
    return rows


def _shared(new: Mapping[int, float], old: Mapping[int, float]) -> list[tuple[float, float]]:
    """Both at each batch that both have, small ones first."""
    return [(new[m], old[m]) for m in sorted(set(new) & set(old))]


def _kind(method: str) -> str:
    cut = parse_method(method)
    return "" if cut is None else "width" if cut.method.inside else "depth"


def _speeds(ladder: Ladder) -> dict[int, float]:
    """Tokens a second by batch, ascending, of those that ran."""
    return {m: throughput(c) for m, c in sorted(ladder.items()) if c["status"] == "ok"}


def _largest(ladder: Ladder) -> str:
    fits = [m for m, c in ladder.items() if c["status"] == "ok"]
    lost = any(c["status"] == "oom" for c in ladder.values())
    return f"{max(fits)}{'' if lost else '+'}" if fits else "none"


def _plateau(speeds: Mapping[int, float]) -> str:
    """`M64, 1,234 tokens/s`; empty where throughput still grows."""
    batches = list(speeds)
    for n, batch in enumerate(batches[:-1]):
        later = [speeds[m] for m in batches[n + 1 :]]
        if all(speed < speeds[batch] * PLATEAU**k for k, speed in enumerate(later, 1)):
            return f"M{batch}, {speeds[batch]:,.0f} tokens/s"
    return ""
