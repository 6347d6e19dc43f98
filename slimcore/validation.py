"""Records are what their types say, or are refused in one line: those read from JSON, and those made in Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from slimcore.errors import PlanError, SlimcoreError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_LONGEST = 60  # characters of a value in a message


class Strict:
    """Base of dataclasses that pydantic reads without coercion: no NaN, no unknown field, no true for 1."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "allow_inf_nan": False, "extra": "forbid"}


def validated(kind: type[T], data: object, where: str, refusal: type[SlimcoreError] = PlanError) -> T:
    """A `kind`, a Strict dataclass, from JSON types; `where` names its place in errors.

    Raises `refusal` in one line: the field, what was expected, the value.
    """
    try:
        from pydantic import ValidationError  # here: it takes longer than all of the core that needs no torch
    except ImportError:
        raise refusal(f"{where}: to read it takes pydantic: pip install 'pydantic>=2.10'") from None

    try:
        read: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps(data))
    except ValidationError as error:
        raise refusal(one_line(f"{where}: {_described(error)}")) from None
    except (SlimcoreError, TypeError, ValueError, RecursionError) as error:
        raise refusal(one_line(f"{where}: {error}")) from None
    return read


def check_kind(what: str, value: object, kind: type) -> None:
    """Raise PlanError unless `value` is a `kind`; a bool is no int."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PlanError(f"{what} must be of type {kind.__name__} (got {shown(value)})")


def check_each(what: str, values: object, kind: type) -> None:
    """Raise PlanError unless `values` is a tuple of `kind`."""
    check_kind(what, values, tuple)
    for value in values:  # type: ignore[attr-defined]
        check_kind(what, value, kind)


def check_count(what: str, value: object) -> None:
    """Raise PlanError unless `value` is a whole number of 1 or more."""
    if type(value) is not int or value < 1:
        raise PlanError(f"{what} must be a whole number, 1 or more (got {shown(value)})")


def check_finite(what: str, values: object, most: float = sys.float_info.max) -> None:
    """Raise PlanError unless `values` is a tuple of numbers, neither NaN nor beyond `most`."""
    check_kind(what, values, tuple)
    for value in values:  # type: ignore[attr-defined]
        if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
            raise PlanError(f"{what} must be finite numbers (got {shown(value)})")


def check_indices(what: str, kept: object, count: int) -> None:
    """Raise PlanError unless `kept` is a tuple of ascending indices below `count`, one at least."""
    check_each(what, kept, int)
    indices = list(kept)  # type: ignore[call-overload]
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
        raise PlanError(f"{what} must be ascending indices within 0..{count - 1}, one at least (got {shown(kept)})")


def one_line(text: str) -> str:
    """`text` without line ends, which a key or value of a file may have."""
    return " ".join(text.split())


def shown(value: object) -> str:
    """`value` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _described(error: Any) -> str:
    """The first of pydantic's complaints: the field, what was expected, the value."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if not field:  # no JSON at all
        return str(first["msg"])
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{shown(field)} is not a field that is known here"
    expected = first["msg"].replace("Input should be", "must be", 1)
    return f"{field} {expected} (got {shown(first['input'])})"
