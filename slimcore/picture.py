"""A plan in words and a picture of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimcore.plan import Plan


def picture(plan: Plan) -> str:
    """What goes, layer by layer, and what it comes to."""
    layers = f"{len(plan.removed)} of {plan.num_layers} layers go, " if plan.removed else ""
    lines = [
        f"{plan.method}: {layers}{plan.ratio:.1%} of block parameters",
        f"  parameters  {plan.parameters_before:,} -> {plan.parameters:,}",
    ]
    if plan.removed:
        strip = "".join("#" if i in plan.keep else "." for i in range(plan.num_layers))
        lines += [
            f"  layers      [{strip}]  # kept, . removed",
            f"  removed     {', '.join(map(str, plan.removed))}",
        ]
    lines += _inside(plan) if plan.width else []
    for step in plan.steps:
        lines += _healed(step.healed)
    return "\n".join(lines)


def _inside(plan: Plan) -> list[str]:
    """What goes inside the layers, and a sentence where no KV group could go."""
    lines, groups_go = [], False
    for name, label in (("kv_groups", "KV groups"), ("channels", "channels")):
        before = {i: getattr(plan.shapes[i], name) for i in plan.keep}
        after = {i: len(getattr(plan.inside(i), name)) for i in plan.keep}
        gone, total = sum(before.values()) - sum(after.values()), sum(before.values())
        groups_go = groups_go or (name == "kv_groups" and gone > 0)
        strip = "".join(_digit(after[i], before[i]) if i in after else "." for i in range(plan.num_layers))
        lines.append(f"  {label:<10}  [{strip}]  {gone:,} of {total:,} go ({gone / total:.1%})")
    lines.append("              # all of a layer kept, 9 nine tenths, 8 eight tenths, ...")
    if not groups_go:
        most = max(plan.shapes[i].kv_groups for i in plan.keep)
        lines.append(f"  no KV group goes (one is {1 / most:.0%} of a layer's): the budget is met with channels")
    if any(w.o_means or w.down_means for w in plan.width.values()):
        lines.append("  biases on the output projections make up for the mean of what goes")
    if plan.multiple_of > 1:
        lines.append(f"  widths of the layers that may be cut are multiples of {plan.multiple_of}")
    return lines


def _healed(healed: dict[str, Any]) -> list[str]:
    """Perplexity before and after: of one text, or of each by its name. The record may be any version's."""
    said = healed.get("perplexity")
    pairs = said.items() if isinstance(said, dict) else [(healed.get("text"), said)]
    kept = healed.get("kept", True)
    label = "healed" if kept else "not healed"
    lines = [
        f"  {label:<10}  perplexity on {text} {_figure(pair[0])} -> {_figure(pair[1])}"
        for text, pair in pairs
        if isinstance(pair, list) and len(pair) == 2
    ]
    if lines and not kept:
        lines.append("              some text would get worse: a gap is too wide, take less or other layers")
    elif lines and kept < 1:
        lines.append(f"              with {kept:g} of each change, as with more some text would get worse")
    return lines


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not finite" if value is None else str(value)


def _digit(kept: int, total: int) -> str:
    return "#" if kept == total else str(10 * kept // total)
