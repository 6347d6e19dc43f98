"""Perplexity against what was gained for it, a speed or a size: points, their Pareto front, and the figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimcore.bench.grid.cells import DENSE, Key, parse_method
from slimcore.bench.records.records import Measurement, Subject
from slimcore.bench.report.figures import STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "quality_speed.png"
PLAIN = [1, 1.5, 2, 3, 5, 7]  # ticks of each decade


@dataclass(frozen=True)
class Point:
    """A model after one cut, or before any."""

    method: str  # in figures; those of one method are joined
    healed: bool
    gain: float  # more is better
    perplexity: float


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both, by perplexity: the least first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.perplexity, -p.gain)):
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def speeds(cells: Iterable[Measurement], subjects: Mapping[Key, Subject]) -> dict[str, list[Point]]:
    """For each model, at the smallest and the largest M that all have: speed-up over dense, of what has a perplexity.

    Of the first lengths, engine, dtype and round.
    """
    ladders: dict[str, dict[str, dict[int, float]]] = {}
    kinds: dict[str, tuple[object, ...]] = {}
    found: dict[tuple[str, str], float] = {}  # perplexities
    for one in cells:
        cell, subject = one.cell, subjects.get(one.cell.subject)
        value = subject.perplexity.value if subject and subject.perplexity else None
        kind = (cell.input_tokens, cell.output_tokens, cell.engine, cell.dtype, cell.round)
        if one.ran and value is not None and kinds.setdefault(cell.model, kind) == kind:
            ladders.setdefault(cell.model, {}).setdefault(cell.method, {})[cell.batch] = one.throughput
            found[cell.model, cell.method] = value
    panels: dict[str, list[Point]] = {}
    for model, methods in ladders.items():
        shared = set.intersection(*map(set, methods.values()))
        if DENSE not in methods or len(methods) < 3 or not shared:
            continue  # one point besides dense is no picture
        for batch in sorted({min(shared), max(shared)}):
            panels[f"{model}, M{batch}"] = [
                point_of(method, ladder[batch] / methods[DENSE][batch], found[model, method])
                for method, ladder in methods.items()
            ]
    return panels


def point_of(method: str, gain: float, perplexity: float) -> Point:
    """The point of a method as grids write it."""
    cut = parse_method(method)
    return Point(DENSE.capitalize() if cut is None else cut.unhealed, cut is not None and cut.heal, gain, perplexity)


def draw(panels: Mapping[str, Sequence[Point]], gain: str, path: Path) -> Path:
    """Draw the panels beside each other into `path`, PNG; `gain` names the axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    methods = list(dict.fromkeys(p.method for points in panels.values() for p in points))
    for (title, points), panel in zip(panels.items(), axes, strict=True):
        _draw_panel(panel, points, methods)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(gain)
    axes[0].set_ylabel("perplexity")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)
    return path


def _draw_panel(panel: Axes, points: Sequence[Point], methods: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    best = front(points)
    panel.step(
        [p.gain for p in best], [p.perplexity for p in best], where="pre", color="#999999", linewidth=5, alpha=0.35,
        label="best of all (Pareto front)", solid_capstyle="round",
    )  # fmt: skip
    for number, method in enumerate(methods):
        style = STYLES[number % len(STYLES)]
        for healed in (False, True):
            own = sorted((p for p in points if (p.method, p.healed) == (method, healed)), key=lambda p: p.gain)
            if own:
                panel.plot(
                    [p.gain for p in own], [p.perplexity for p in own], color=style["color"], marker=style["marker"],
                    linestyle="-" if healed else ":", linewidth=1.2, markersize=6,
                    markerfacecolor=style["color"] if healed or method == DENSE.capitalize() else "white",
                    label=method + (", healed" if healed else ""),
                )  # fmt: skip
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=PLAIN))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
