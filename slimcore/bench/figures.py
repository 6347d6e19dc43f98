"""The figure: throughput against latency, one panel per (model, output, input)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcore.bench.results import Record
from slimcore.bench.statistics import summarise
from slimcore.cost import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "throughput_latency"

# Colours of Okabe and Ito, told apart by every common form of colour vision; marker and dash carry them in greyscale.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    {"color": "#009E73", "marker": "D", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (1, 1))},
)

Panel = tuple[str, int, int]  # model, output tokens, input tokens


def draw(cells: Sequence[Record], subjects: Mapping[tuple[str, str], Record], folder: Path) -> Path | None:
    """Draw the cells as PNG and SVG into `folder`; return the PNG's path, or None where no cell has a time."""
    timed = [c for c in cells if c["status"] in ("ok", "oom")]
    if not any(c["status"] == "ok" for c in timed):
        return None
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(c["model"] for c in timed))
    columns = list(dict.fromkeys((c["output_tokens"], c["input_tokens"]) for c in timed))
    methods = list(dict.fromkeys((c["method"], c["engine"], c["dtype"]) for c in timed))
    figure = Figure(figsize=(4.6 * len(columns), 3.7 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), len(columns), squeeze=False)
    for row, model in enumerate(models):
        for column, (outputs, inputs) in enumerate(columns):
            panel = axes[row][column]
            inside = [
                c for c in timed if (c["model"], c["output_tokens"], c["input_tokens"]) == (model, outputs, inputs)
            ]
            panel.set_title(f"{model}: {inputs} in, {outputs} out", fontsize=10)
            for number, series in enumerate(methods):
                chosen = [c for c in inside if (c["method"], c["engine"], c["dtype"]) == series]
                if chosen:
                    _draw_series(panel, chosen, _legend(chosen[0], subjects, methods), number)
            _finish(panel)
    png = folder / f"{FIGURE}.png"
    figure.savefig(png, dpi=160)
    figure.savefig(png.with_suffix(".svg"))
    return png


def _legend(cell: Record, subjects: Mapping[tuple[str, str], Record], methods: Sequence[tuple[str, str, str]]) -> str:
    """`Ours 99M`; with engine and dtype where the figure has several."""
    subject = subjects.get((cell["model"], cell["method"]))
    label = f"{subject['label']} {human(subject['footprint']['parameters'])}" if subject else cell["method"]
    label = label[0].upper() + label[1:]
    if len({engine for _, engine, _ in methods}) > 1:
        label += f", {cell['engine']}"
    if len({dtype for _, _, dtype in methods}) > 1:
        label += f", {cell['dtype']}"
    return label


def _draw_series(panel: Axes, cells: Sequence[Record], label: str, number: int) -> None:
    style = _STYLES[number % len(_STYLES)]
    ok = sorted((c for c in cells if c["status"] == "ok"), key=lambda c: c["batch"])
    lost = sorted(c["batch"] for c in cells if c["status"] == "oom")
    if lost and not ok:
        label += f" (out of memory from M{lost[0]})"
    times = [summarise(c["latency_s"]) for c in ok]
    x = [t.centre for t in times]
    y = [c["batch"] * c["output_tokens"] / t.centre for c, t in zip(ok, times, strict=True)]
    panel.hlines(y, [t.low for t in times], [t.high for t in times], color=style["color"], linewidth=0.8)
    face = "white" if number % 2 else style["color"]
    panel.plot(x, y, label=label, markersize=5, linewidth=1.4, markerfacecolor=face, **style)
    above = number % 2 == 0
    place: dict[str, Any] = {"ha": "right", "va": "bottom"} if above else {"ha": "left", "va": "top"}
    offset = (-4, 4) if above else (4, -4)
    for cell, at in zip(ok, zip(x, y, strict=True), strict=True):
        text = f"M{cell['batch']}"
        panel.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=7, color=style["color"], **place)
    if lost and ok:
        # To the right of the last point that fits: where the curve would have gone on.
        panel.annotate(
            f"\N{MULTIPLICATION SIGN} M{lost[0]} out of memory", (x[-1], y[-1]), xytext=(9, 0),
            textcoords="offset points", ha="left", va="center", fontsize=7, fontweight="bold", color=style["color"],
            annotation_clip=False,
        )  # fmt: skip


def _finish(panel: Axes) -> None:
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
    panel.legend(fontsize=8, loc="lower right", framealpha=0.9)
