"""Budget: how much to cut, in one of five units."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Self

from slimcore.errors import BudgetError

_SHORT = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>local|L|MB|GB|M|B)?")
_SIZES = {"M": 1e6, "B": 1e9, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Budget:
    """How much to cut: exactly one of these."""

    ratio: float | None = None  # share of all block parameters removed
    params: int | None = None  # parameters left
    bytes: int | None = None  # weight bytes left, in the model's dtype
    layers: int | None = None  # layers removed (depth methods)
    local_ratio: float | None = None  # share removed of each layer that is cut (width methods; LLM-Pruner's ratio)

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if len(given) != 1:
            names = ", ".join(f"{f.name}=" for f in fields(self))
            raise BudgetError(f"give exactly one of {names} (got {', '.join(given) or 'none'})")
        for name in ("ratio", "local_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise BudgetError(f"{name} must lie between 0 and 1, both excluded (got {value})")
        for name in ("params", "bytes", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BudgetError(f"{name} must be 1 or more (got {value})")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the short form: `0.27` a ratio, `0.35local` a local one, `9L` layers, `4.9B` parameters, `9.8GB`."""
        match = _SHORT.fullmatch(text)
        if not match:
            raise BudgetError(
                f"budget {text!r} is not a ratio (0.27), a local ratio (0.35local), layers removed (9L),"
                " parameters left (4.9B) or bytes left (9.8GB)"
            )
        number, unit = float(match["number"]), match["unit"]
        if unit == "L":
            return cls(layers=int(number))
        if unit == "local":
            return cls(local_ratio=number)
        if unit in ("MB", "GB"):
            return cls(bytes=round(number * _SIZES[unit]))
        if unit:
            return cls(params=round(number * _SIZES[unit]))
        return cls(ratio=number)

    def __str__(self) -> str:
        ((name, value),) = self.as_dict().items()
        if name in ("params", "bytes"):
            unit = "B" if value >= 1e9 else "M"
            return f"{value / _SIZES[unit]:g}" + ({"B": "GB", "M": "MB"}[unit] if name == "bytes" else unit)
        return f"{value:g}" + {"ratio": "", "local_ratio": "local", "layers": "L"}[name]

    @property
    def words(self) -> str:
        """`params=4,900,000,000`, for messages."""
        ((name, value),) = self.as_dict().items()
        return f"{name}={value:,}"

    def as_dict(self) -> dict[str, float]:
        """The one field that is set, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
