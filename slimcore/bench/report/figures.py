"""The figure: throughput against latency, one panel per (model, output, input)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.bench.grid.cells import Cell, Key
from slimcore.bench.grid.limit import Counted, least_of
from slimcore.bench.records.records import Measurement, Times
from slimcore.bench.statistics import summarise
from slimcore.units import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slimcore.bench.grid.forecast import Forecast
    from slimcore.bench.grid.limit import Device

FIGURE = "throughput_latency"

# Colours of Okabe and Ito, told apart by every common form of colour vision; marker and dash carry them in greyscale.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    {"color": "#009E73", "marker": "D", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (1, 1))},
    {"color": "#E69F00", "marker": "X", "linestyle": (0, (3, 1, 1, 1))},
    {"color": "#7F7F7F", "marker": "*", "linestyle": (0, (5, 3))},
)


def draw(
    cells: Sequence[Measurement], subjects: Mapping[Key, Counted], folder: Path, device: Device | None = None
) -> Path | None:
    """Draw the cells as PNG and SVG into `folder`; return the PNG's path, or None where no cell has a time.

    With a `device`, a thin line beside each series is its limit there.
    """
    timed = [c for c in cells if c.status != "error"]
    if not any(c.ran for c in timed):
        return None
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(c.cell.model for c in timed))
    columns = list(dict.fromkeys(_lengths(c.cell) for c in timed))
    figure = Figure(figsize=(4.6 * len(columns), 3.7 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), len(columns), squeeze=False)
    for model, row in zip(models, axes, strict=True):
        own = [c for c in timed if c.cell.model == model]
        series = list(dict.fromkeys(_series(c.cell) for c in own))
        for (outputs, inputs), panel in zip(columns, row, strict=True):
            inside = [c for c in own if _lengths(c.cell) == (outputs, inputs)]
            labelled = (0, _fastest(inside, series))
            for number, name in enumerate(series):
                chosen = [c for c in inside if _series(c.cell) == name]
                if chosen:
                    label = _legend(chosen[0].cell, subjects, series)
                    # The outermost series carry the labels; those between have their points at the same M in turn.
                    _draw_series(panel, chosen, label, number, labelled=number in labelled)
                    if device is not None:
                        _draw_limit(panel, chosen, subjects, device, number)
            _finish(panel, f"{model}: {inputs} in, {outputs} out")
    png = folder / f"{FIGURE}.png"
    figure.savefig(png, dpi=160)
    figure.savefig(png.with_suffix(".svg"))
    return png


def predicted(forecasts: Iterable[Forecast]) -> list[Measurement]:
    """Forecasts as if measured at their limit, to be drawn."""
    return [
        Measurement(f.cell, "ok", times=Times((f.least,))) if f.fits else Measurement(f.cell, "oom") for f in forecasts
    ]


def _lengths(cell: Cell) -> tuple[int, int]:
    return cell.output_tokens, cell.input_tokens


def _series(cell: Cell) -> tuple[str, str, str]:
    """What one line of a panel shares."""
    return cell.method, cell.engine, cell.dtype


def _fastest(cells: Sequence[Measurement], series: Sequence[tuple[str, str, str]]) -> int:
    """The number of the series that is furthest to the left: of least latency at the smallest batch that has a time."""
    timed = [c for c in cells if c.ran]
    if not timed:
        return 0
    return series.index(_series(min(timed, key=lambda c: (c.cell.batch, c.latency)).cell))


def _legend(cell: Cell, subjects: Mapping[Key, Counted], series: Sequence[tuple[str, str, str]]) -> str:
    """`Ours 99M`; with engine and dtype where the model has several."""
    subject = subjects.get(cell.subject)
    label = f"{subject.label} {human(subject.costs.parameters)}" if subject else cell.method
    label = label[0].upper() + label[1:]
    if len({engine for _, engine, _ in series}) > 1:
        label += f", {cell.engine}"
    if len({dtype for _, _, dtype in series}) > 1:
        label += f", {cell.dtype}"
    return label


def _draw_series(panel: Axes, cells: Sequence[Measurement], label: str, number: int, *, labelled: bool) -> None:
    """One line; where it ends for want of memory there is a cross, and the legend says at which M."""
    style = STYLES[number % len(STYLES)]
    ok = sorted((c for c in cells if c.ran), key=lambda c: c.cell.batch)
    lost = sorted(c.cell.batch for c in cells if c.status == "oom")
    if lost:
        label += f", OOM at M{lost[0]}"
    times = [summarise(c.times.latency_s) for c in ok]
    x = [t.centre for t in times]
    y = [c.throughput for c in ok]
    panel.hlines(y, [t.low for t in times], [t.high for t in times], color=style["color"], linewidth=0.8)
    face = "white" if number % 2 else style["color"]
    panel.plot(x, y, label=label, markersize=5, linewidth=1.4, markerfacecolor=face, **style)
    # The first series, the slowest as a rule, has its labels to the lower right, the fastest to the upper left.
    lower = number == 0
    offset = (4, -4) if lower else (-4, 4)
    place: dict[str, Any] = {"ha": "left", "va": "top"} if lower else {"ha": "right", "va": "bottom"}
    for cell, at in zip(ok if labelled else [], zip(x, y, strict=True), strict=labelled):
        text = f"M{cell.cell.batch}"
        panel.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=7, color=style["color"], **place)
    if lost and ok:
        # To the right of the last point that fits, where the curve would have gone on.
        panel.annotate("\N{MULTIPLICATION SIGN}", (x[-1], y[-1]), xytext=(9, 0), textcoords="offset points", ha="left",
                       va="center", fontsize=9, fontweight="bold", color=style["color"])  # fmt: skip


def _draw_limit(
    panel: Axes, cells: Sequence[Measurement], subjects: Mapping[Key, Counted], device: Device, number: int
) -> None:
    """The least latency of each point that has one, and the throughput there."""
    ran = sorted((c.cell for c in cells if c.ran), key=lambda cell: cell.batch)
    points = [(least, cell.batch * cell.output_tokens / least)
              for cell in ran if (least := least_of(cell, subjects, device))]  # fmt: skip
    if points:
        colour, label = STYLES[number % len(STYLES)]["color"], "limit of the device" if number == 0 else None
        panel.plot(*zip(*points, strict=True), ".-", color=colour, linewidth=0.6, markersize=2, alpha=0.7, label=label)


def _finish(panel: Axes, title: str) -> None:
    """Title and legend above, axes, and room to the right of the last point."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = panel.get_ylim()
    # An octave at least, and air for the labels.
    middle = (low * high) ** 0.5
    panel.set_ylim(min(low / 1.25, middle / 2), max(high * 1.25, middle * 2))
    panel.set_xlim(0, panel.get_xlim()[1] * 1.12)
    panel.set_xlabel("latency (s)")
    panel.set_ylabel("throughput (tokens/s)")
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    # Above the axes: inside, it would cover points of one grid or another.
    legend = panel.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    panel.set_title(title, fontsize=10, pad=8 + 14 * math.ceil(len(legend.get_texts()) / 2))
