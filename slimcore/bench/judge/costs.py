"""Costs and perplexities that changed: exact, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from slimcore.bench.grid.cells import Key
from slimcore.bench.records.records import Subject

OPERATORS = "operator_calls_per_token"
PERPLEXITY = 1e-3  # relative; below lies what another order of float operations does


def more_than(old: Mapping[Key, Subject], new: Mapping[Key, Subject], what: str) -> dict[str, str]:
    """A message for each subject, by its name, that costs more than `what`."""
    found = {}
    for key, subject in new.items():
        worse = [line for line, is_worse in changed_costs(subject, old.get(key)) if is_worse]
        if worse:
            lines = [f"{subject.name} costs more than {what}:", *(f"  {line}" for line in worse)]
            found[subject.name] = "\n".join([*lines, "  where that is meant, accept it: --perf-update replace"])
    return found


def changed_costs(new: Subject, old: Subject | None) -> list[tuple[str, bool]]:
    """Every cost that changed, in words, and whether it is worse.

    More operators are not where other versions of the libraries call them: those are no change of ours.
    """
    if old is None:
        return []
    lines, before = [], asdict(old.costs)
    for name, value in asdict(new.costs).items():
        if value != before[name]:
            others = ""
            if name == OPERATORS and new.counted_by != old.counted_by:
                others = f" ({old.counted_by} -> {new.counted_by})"
            lines.append((f"{name} {before[name]:,} -> {value:,}{others}", value > before[name] and not others))
    return lines + _changed_perplexity(new, old)


def _changed_perplexity(new: Subject, old: Subject) -> list[tuple[str, bool]]:
    now, then = new.perplexity, old.perplexity
    if now is None or then is None:
        return []
    for what, alike in (
        ("weights", new.weights == old.weights),
        ("tokens", now.tokens.get("tokens_sha256") == then.tokens.get("tokens_sha256")),
    ):
        if not alike:
            return [(f"perplexity is not compared: it is measured on other {what} than the accepted one", False)]
    a, b = (float("inf") if p.value is None else p.value for p in (then, now))
    if a == b or abs(b / a - 1) <= PERPLEXITY:
        return []
    return [(f"perplexity {a:.4f} -> {b:.4f}", b > a)]
