"""What a run says of the published figure's reading: Ours above dense, width below Ours, larger batches, plateaus.

Kim et al. 2024, arXiv 2402.02834, figure 1 and section 4: depth pruning speeds generation up where memory's bandwidth
bounds it, width pruning does not, and a smaller model has room for larger batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from slimcore.bench.grid.cells import DENSE, parse_method
from slimcore.bench.judge.gains import Time, times
from slimcore.bench.markdown import tabulated
from slimcore.bench.records.records import Measurement
from slimcore.bench.records.results import grouped
from slimcore.bench.report import tables
from slimcore.bench.statistics import Comparison, compare

PLATEAU = 1.1  # a doubled batch that gives less than this more is on it
STILL = 1.05  # times the speed of dense: less is no speed-up


def told(cells: Sequence[Measurement]) -> str:
    """Tables of what pruning bought, panel by panel, and of the reading; empty without dense and another method.

    Each engine has panels and readings of its own: whether they hold where nothing is launched by Python is a finding.
    """
    rows: list[dict[str, str]] = []
    known = times(cells)
    reading: list[dict[str, str]] = []
    first = [c for c in cells if c.cell.round == 1]
    ways = grouped(first, "engine", "dtype")
    for way in ways:
        held: dict[str, list[bool | None]] = {}
        engine = {"engine": f"{way[0].cell.engine} {way[0].cell.dtype}"} if len(ways) > 1 else {}
        for panel in grouped(way, "model", "input_tokens", "output_tokens"):
            ladders = {own[0].cell.method: {c.cell.batch: c for c in own} for own in grouped(panel, "method")}
            if DENSE in ladders and len(ladders) > 1:
                one = panel[0].cell
                name = f"{one.model}, {one.input_tokens} in, {one.output_tokens} out"
                rows += [{"panel": name} | engine | row for row in _rows(ladders, known)]
                _read(ladders, known, held)
        reading += [{"reading": claim} | engine | {"holds in": _in_panels(panels)} for claim, panels in held.items()]
    gained = [known[c.id] for c in first if c.id in known and known[c.id].gain]
    paired = f"{sum(time.paired for time in gained)} of {len(gained)} cells were measured in turn with dense."
    if not all(time.paired for time in gained):
        paired += f" {tables.APART_NOTE}"
    return f"{tabulated(rows)}\n\n{paired} {_NOTE}\n\n{tabulated(reading)}" if rows else ""


def side_by_side(cells: Sequence[Measurement]) -> str:
    """A table of tokens a second by engine, where a cell has a time by several; empty where none has."""
    rows = []
    for alike in grouped(cells, "model", "method", "input_tokens", "output_tokens", "batch", "dtype", "round"):
        ran = [c for c in alike if c.ran]
        if len(ran) > 1:
            first = ran[0].throughput
            rows.append(
                {"cell": ran[0].id.rpartition("/")[0]}
                | {c.cell.engine: f"{c.throughput:,.1f} (x{c.throughput / first:.2f})" for c in ran}
            )
    return tabulated(rows) if rows else ""


_NOTE = (
    "vs dense: throughput at equal M, the smallest and the largest that both have; ~ where it is not shown. Largest M:"
    " of those measured that fit; + where nothing was too large. Plateau: the M from which more rows give less than a"
    " tenth more. Best: most tokens/s of the method at any M, over dense's, of the Ms at which both were tried. The"
    " published reading, in this run (not told: it looks otherwise, but no more than noise can):"
)
_DEPTH = "depth pruning is above dense at every M"
_WIDTH = "width methods are below depth pruning at the smallest M"
_STILL = "width methods do not speed generation up at the smallest M (within 5 %)"
_LARGER = "a larger M fits after pruning"
_ALIGNED = "multiples of 64 make a width method faster"

Ladder = Mapping[int, Measurement]  # by batch, of one series of a panel


def _rows(ladders: Mapping[str, Ladder], known: Mapping[str, Time]) -> list[dict[str, str]]:
    """Of one panel, a row a method."""
    rows = []
    for method, ladder in ladders.items():
        ran = [known[c.id] for _, c in sorted(ladder.items()) if c.id in known]
        gains = [tables.against_dense(time) for time in ran if time.gain]
        rows.append(
            {
                "method": method,
                "vs dense": " to ".join((*gains[:1], *gains[1:][-1:])),
                "largest M": _largest(ladder),
                "plateau": _plateau(_speeds(ladder)),
                "best": "" if method == DENSE else _best(ladder, ladders[DENSE]),
            }
        )
    return rows


def _read(ladders: Mapping[str, Ladder], known: Mapping[str, Time], held: dict[str, list[bool | None]]) -> None:
    """Add to `held` what one panel says of each claim that it can speak of."""
    ran = {m: {b: known[c.id] for b, c in sorted(own.items()) if c.id in known} for m, own in ladders.items()}
    depth = [m for m in ladders if _kind(m) == "depth"][:1]
    widths = [m for m in ladders if _kind(m) == "width" and "x" not in m.partition(":")[2]]
    smallest = min(ladders[DENSE])

    def over(new: str, old: str, *, at: int | None = None) -> list[Comparison]:
        """Latency of `new` over that of `old`, at each M that both have, or at one."""
        shared = [(ran[new][m], ran[old][m]) for m in ran[new] if m in ran[old] and at in (None, m)]
        return [b.gain if new == DENSE and b.gain else compare(a.plausible, b.plausible) for a, b in shared]

    claims = {
        _DEPTH: ([r for d in depth for r in over(DENSE, d)], _faster),
        _WIDTH: ([r for d in depth for m in widths for r in over(m, d, at=smallest)], _faster),
        _STILL: ([r for m in widths for r in over(DENSE, m, at=smallest)], lambda ratio: ratio < STILL),
        _ALIGNED: ([r for m in ladders if (plain := m.rpartition("x")[0]) in ladders for r in over(plain, m)], _faster),
    }
    for claim, (ratios, true) in claims.items():
        if ratios:
            held.setdefault(claim, []).append(_holds(ratios, true))
    if any(c.status == "oom" for c in ladders[DENSE].values()):
        largest = {m: max(batches, default=0) for m, batches in ran.items()}
        held.setdefault(_LARGER, []).append(max(largest.values()) > largest[DENSE])


def _faster(ratio: float) -> bool:
    return ratio > 1


def _holds(ratios: Sequence[Comparison], true: Callable[[float], bool]) -> bool | None:
    """Whether a claim on ratios, true on one side of a number, holds of all; None where no exception is shown."""
    exceptions = [r for r in ratios if not true(r.ratio)]
    if not exceptions:
        return True
    return False if any(not true(r.low) and not true(r.high) for r in exceptions) else None


def _in_panels(held: Sequence[bool | None]) -> str:
    """`3 of 4 panels, not told in 1`."""
    open_ = held.count(None)
    return f"{held.count(True)} of {len(held)} panels" + (f", not told in {open_}" if open_ else "")


def _best(ladder: Ladder, dense: Ladder) -> str:
    """`x1.25`: most tokens a second over dense's, at the Ms that both were tried at; empty where one has none."""
    tried = set(ladder) & set(dense)
    ours, theirs = ([s for m, s in _speeds(own).items() if m in tried] for own in (ladder, dense))
    return f"x{max(ours) / max(theirs):.2f}" if ours and theirs else ""


def _kind(method: str) -> str:
    cut = parse_method(method)
    return "" if cut is None else "width" if cut.method.inside else "depth"


def _speeds(ladder: Ladder) -> dict[int, float]:
    """Tokens a second by batch, ascending, of those that ran."""
    return {m: c.throughput for m, c in sorted(ladder.items()) if c.ran}


def _largest(ladder: Ladder) -> str:
    fits = [m for m, c in ladder.items() if c.ran]
    lost = any(c.status == "oom" for c in ladder.values())
    return f"{max(fits)}{'' if lost else '+'}" if fits else "none"


def _plateau(speeds: Mapping[int, float]) -> str:
    """`M64, 1,234 tokens/s`; empty where throughput still grows."""
    batches = list(speeds)
    for n, batch in enumerate(batches[:-1]):
        later = [speeds[m] for m in batches[n + 1 :]]
        if all(speed < speeds[batch] * PLATEAU**k for k, speed in enumerate(later, 1)):
            return f"M{batch}, {speeds[batch]:,.0f} tokens/s"
    return ""
