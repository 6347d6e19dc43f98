"""Budget: how much to cut, in one of five units."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Self

from slimcore.errors import BudgetError
from slimcore.validation import Strict, shown

# No longer than the digits of the smallest ratio there is.
_SHORT = re.compile(r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,400})?)(?P<unit>local|L|MB|GB|M|B)?")
_UNITS = {  # short form: the field, and how many of it one is
    "L": ("layers", 1),
    "M": ("params", 10**6),
    "B": ("params", 10**9),
    "MB": ("bytes", 10**6),
    "GB": ("bytes", 10**9),
}
_MOST = 10**18


@dataclass(frozen=True)
class Budget(Strict):
    """How much to cut: exactly one of these."""

    ratio: float | None = None  # share of all block parameters removed
    params: int | None = None  # parameters left
    bytes: int | None = None  # weight bytes left, in the model's dtype
    layers: int | None = None  # layers removed (depth methods)
    local_ratio: float | None = None  # share removed of each layer that is cut (width methods; LLM-Pruner's ratio)

    def __post_init__(self) -> None:
        given = self.as_dict()
        if len(given) != 1:
            names = ", ".join(f"{f.name}=" for f in fields(self))
            raise BudgetError(f"give exactly one of {names} (got {', '.join(given) or 'none'})")
        ((name, value),) = given.items()
        checked = _ratio(name, value) if name in ("ratio", "local_ratio") else _count(name, value)
        object.__setattr__(self, name, checked)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the short form: `0.27` a ratio, `0.35local` a local one, `9L` layers, `4.9B` parameters, `9.8GB`.

        What `str` writes is read back as the same budget. Raises BudgetError.
        """
        match = _SHORT.fullmatch(text)
        if not match:
            raise BudgetError(
                f"budget {shown(text)} is not a ratio (0.27), a local ratio (0.35local), layers removed (9L),"
                " parameters left (4.9B) or bytes left (9.8GB)"
            )
        unit = match["unit"]
        if unit == "local":
            return cls(local_ratio=float(match["number"]))
        if unit is None:
            if not 0 < float(match["number"]) < 1:
                raise BudgetError(
                    f"budget {shown(text)} has no unit, and a ratio lies between 0 and 1: layers removed are written"
                    " 9L, parameters left 4.9B, bytes left 9.8GB"
                )
            return cls(ratio=float(match["number"]))
        name, size = _UNITS[unit]
        amount = Fraction(match["number"]) * size
        if amount.denominator != 1:
            raise BudgetError(f"budget {shown(text)} is no whole number of {name}")
        return cls(**{name: int(amount)})

    def __str__(self) -> str:
        ((name, value),) = self.as_dict().items()
        if name in ("params", "bytes"):
            unit, size = ("B", 10**9) if value >= 10**9 else ("M", 10**6)
            whole, rest = divmod(int(value), size)
            digits = str(rest).zfill(len(str(size)) - 1).rstrip("0")
            return f"{whole}.{digits}".rstrip(".") + ({"B": "GB", "M": "MB"}[unit] if name == "bytes" else unit)
        return _plainly(value) + {"ratio": "", "local_ratio": "local", "layers": "L"}[name]

    @property
    def words(self) -> str:
        """`params=4,900,000,000`, for messages."""
        ((name, value),) = self.as_dict().items()
        return f"{name}={value:,}" if isinstance(value, int) else f"{name}={_plainly(value)}"

    def as_dict(self) -> dict[str, float]:
        """The one field that is set, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def _ratio(name: str, value: Any) -> float:
    if type(value) is not bool and isinstance(value, Real) and 0 < float(value) < 1:
        return float(value)
    raise BudgetError(f"{name} must lie between 0 and 1, both excluded (got {shown(value)})")


def _count(name: str, value: Any) -> int:
    if type(value) is not bool and isinstance(value, Integral) and 1 <= int(value) <= _MOST:
        return int(value)
    raise BudgetError(f"{name} must be a whole number from 1 to {_MOST:.0e} (got {shown(value)})")


def _plainly(value: float) -> str:
    """All digits that give `value` back, without an exponent."""
    return format(Decimal(repr(value)), "f")
