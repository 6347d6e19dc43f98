"""`slimcore inspect`: what a model costs, or would cost after a cut, and what a plan says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimcore.errors import PlanError
from slimcore.options import (
    Bytes,
    Dtype,
    Layers,
    LocalRatio,
    MethodName,
    MultipleOf,
    Params,
    Protect,
    Ratio,
    Revision,
    given_budget,
    given_protection,
)
from slimcore.plan import Plan
from slimcore.selection import select

if TYPE_CHECKING:
    from slimcore.cost import Footprint


def inspect(
    target: Annotated[str, typer.Argument(metavar="MODEL|PLAN", help="A model, as for prune, or a plan's JSON file.")],
    method: MethodName = "depth-ppl",
    ratio: Ratio = None,
    params: Params = None,
    bytes: Bytes = None,  # noqa: A002
    layers: Layers = None,
    local_ratio: LocalRatio = None,
    multiple_of: MultipleOf = 1,
    protect: Protect = None,
    against: Annotated[Path | None, typer.Option(help="Compare the plan with this one.")] = None,
    dtype: Dtype = None,
    revision: Revision = None,
) -> None:
    """Print what a model costs, or would cost after a cut, or what a plan says; no weights are needed."""
    if Path(target).is_file():
        plan = Plan.load(target)
        typer.echo(str(plan))
        if against is not None:
            typer.echo(f"{(other := Plan.load(against))}\n{plan.compare(other)}")
        return
    if against is not None:
        raise PlanError(f"{target} is no plan's JSON file: --against compares two plans")
    from slimcore.cost import footprint
    from slimcore.methods import unscored
    from slimcore.models import load_meta
    from slimcore.surgery import prune_

    budget = given_budget(ratio, params, bytes, layers, local_ratio)
    network = load_meta(target, dtype=dtype, revision=revision)
    before = footprint(network)
    if not budget:
        _print_footprints({target: before})
        return
    plan = select(
        unscored(network, method=method), **budget, multiple_of=multiple_of, protect=given_protection(protect)
    )
    prune_(network, plan)
    fewer = f", {len(plan.removed)} layers fewer" if plan.removed else ""
    _print_footprints({target: before, f"{method}{fewer}": footprint(network)})
    typer.echo(f"{plan.ratio:.2%} of block parameters; what goes is for scoring to say: slimcore score, slimcore prune")


def _print_footprints(columns: dict[str, Footprint]) -> None:
    """One row a cost, one column a model."""
    width = max(20, *(len(name) for name in columns))
    typer.echo(" " * 26 + "  ".join(f"{name:>{width}}" for name in columns))
    for label, field in (
        ("layers", "layers"),
        ("KV groups, all layers", "kv_groups"),
        ("MLP channels, all layers", "channels"),
        ("parameters", "parameters"),
        ("block parameters", "block_parameters"),
        ("weight bytes", "weight_bytes"),
        ("FLOPs per token", "flops_per_token"),
        ("  + per position attended", "flops_per_position"),
        ("KV cache bytes per token", "kv_bytes_per_token"),
    ):
        typer.echo(f"{label:<26}" + "  ".join(f"{getattr(c, field):>{width},}" for c in columns.values()))
