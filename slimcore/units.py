"""Figures as the field writes them."""

from __future__ import annotations


def human(count: float, unit: str = "") -> str:
    """A short figure in decimal units, as the field writes sizes: 4916965376 -> '4.9B', 98974080 -> '99M'."""
    for limit, suffix in ((1e12, "T"), (1e9, "B" if not unit else "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            value = count / limit
            return f"{value:.1f}{suffix}{unit}" if suffix in "BGT" or unit else f"{value:.0f}{suffix}"
    return f"{count:.0f}{unit}"
