"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd


def tabulated(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table through pandas and tabulate; cells are text already."""
    if not rows:
        return "Nothing yet."
    frame = pd.DataFrame([{_inside(k): _inside(v) for k, v in row.items()} for row in rows]).fillna("")
    align = ["right" if all(map(_is_number, frame[name])) else "left" for name in frame.columns]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def _inside(text: str) -> str:
    """`text` as it can stand in a cell: on one line, without a border."""
    return " ".join(text.splitlines()).replace("|", "\\|")


def _is_number(text: str) -> bool:
    """Empty counts, and x1.42, +5.0%, 99M too."""
    return not text or bool(re.match(r"[x+-]?\d[^ ]*( \S+)?$", text))
