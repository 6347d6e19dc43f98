"""A plan as JSON: written with each list on one line, read strictly, those of the schema before too."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from slimcore.budget import Budget
from slimcore.errors import PlanError
from slimcore.validation import one_line, shown, validated

SCHEMA = "slimcore.plan/3"
BEFORE = "slimcore.plan/2"  # one `budget`, and one `provenance` that nests where plans were composed
ACHIEVED = ("parameters", "ratio")  # properties that are written too, for whoever reads the file

Record = dict[str, Any]
T = TypeVar("T")


def written(plan: Any) -> Record:
    """A plan as JSON types, with what it achieves."""
    return {"schema": SCHEMA, **_plain(plan), **{name: getattr(plan, name) for name in ACHIEVED}}


def read(kind: type[T], data: object, where: str) -> T:
    """The plan, a `kind`, that was written as `data`; `where` names its place in errors. Raises PlanError."""
    found = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if not isinstance(data, dict) or found not in (SCHEMA, BEFORE):
        raise PlanError(
            one_line(f"{where}: not a plan of schema {SCHEMA!r} or {BEFORE!r} (found {shown(found)}): make it anew")
        )
    record = {name: value for name, value in data.items() if name not in ("schema", *ACHIEVED)}  # the plan's own
    plan = validated(kind, record if found == SCHEMA else _in_steps(record, where), where)
    for name in ACHIEVED:
        says, has = data.get(name), getattr(plan, name)
        if says != has:
            raise PlanError(one_line(f"{where}: {name} must be that of what it keeps, {has} (got {shown(says)})"))
    return plan


def laid_out(value: Any, indent: str = "") -> str:
    """JSON with objects laid out and lists of numbers on one line, or each index would be a line of its own."""
    if not value or not (isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + laid_out(v, inner) for v in value) + f"\n{indent}]"
    fields_ = (f"{inner}{json.dumps(name)}: {laid_out(v, inner)}" for name, v in value.items())
    return "{\n" + ",\n".join(fields_) + f"\n{indent}}}"


def finite(value: Any) -> Any:
    """JSON types with null for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """As JSON types."""
    if isinstance(value, Budget):
        return value.as_dict()
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _in_steps(record: Record, where: str) -> Record:
    """A record of the schema before as one of this."""
    provenance = record.pop("provenance", {})
    try:
        steps = _steps({"method": record.get("method"), "budget": record.pop("budget", {})} | provenance)
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError):
        raise PlanError(one_line(f"{where}: provenance must be an object (got {shown(provenance)})")) from None
    return record | {"steps": steps}


def _steps(step: Record) -> list[Record]:
    """A step of the schema before, or the steps inside it; what was done after all of those belongs to the last."""
    done: Record = {name: step[name] for name in ("healed", "recovered") if name in step}
    if "steps" in step:
        inside = [one for inner in step["steps"] for one in _steps(inner)]
        inside[-1] |= done
        return inside
    scored = {name: value for name, value in step.items() if name not in ("method", "budget", *done)}
    return [{"method": step["method"], "budget": step["budget"] or None, "scored": scored} | done]
