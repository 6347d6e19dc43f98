"""What the commands take: one type an option, and how its words are read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from slimcore.budget import Budget
from slimcore.errors import BudgetError
from slimcore.methods import METHODS
from slimcore.scores import ALLOCATIONS

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, smollm2-135m, a hub id, or a shape such as llama-7b.")
]
MethodName = Annotated[str, typer.Option("--method", help=f"One of: {', '.join(METHODS)}.")]
Ratio = Annotated[float | None, typer.Option(help="Share of all block parameters to remove, as 0.27.")]
Params = Annotated[str | None, typer.Option(help="Parameters to leave, as 99M, 4.9B or a whole number.")]
Bytes = Annotated[str | None, typer.Option(help="Weight bytes to leave, as 200MB, 9.8GB or a whole number.")]
Layers = Annotated[int | None, typer.Option(help="Layers to remove (depth methods).")]
LocalRatio = Annotated[float | None, typer.Option(help="Share to remove of each layer that is cut (width methods).")]
MultipleOf = Annotated[int, typer.Option(help="Keep widths that are multiples of this (width methods).")]
Allocation = Annotated[
    str | None, typer.Option(help=f"Of the budget, one of: {', '.join(ALLOCATIONS)} (width methods).")
]
Protect = Annotated[
    str | None, typer.Option(help="First and last layers that are never cut, as 4,2; default: the method's.")
]
Metric = Annotated[str | None, typer.Option(help="Of the method, as param_second of llm-pruner; default: its first.")]
TextSource = Annotated[
    str | None,
    typer.Option("--text", help="A file, lines of JSON as FILE.jsonl:COLUMN, or a datasets name; default: builtin."),
]
TextSources = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="A file, lines of JSON as FILE.jsonl:COLUMN, a datasets name, or builtin; may be repeated."
    ),
]
HealSamples = Annotated[int, typer.Option(help="Calibration windows of healing.")]
Samples = Annotated[int | None, typer.Option(help="Calibration windows; default: the method's.")]
Length = Annotated[int | None, typer.Option(help="Tokens a window; default: the method's.")]
Bos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="Start each window with BOS; default: as the tokenizer does.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Seed = Annotated[int, typer.Option(help="Seed of the calibration windows and of random weights.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: as stored.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Force = Annotated[bool, typer.Option("--force", help="Replace the checkpoint that the folder holds.")]


@dataclass(frozen=True)
class Source:
    """Where a command's model comes from."""

    name: str
    dtype: str | None = None
    device: str = "cpu"
    seed: int = 0  # of random weights
    revision: str | None = None


@dataclass(frozen=True)
class Windows:
    """The calibration windows that a command was asked for; None is the method's own number."""

    text: list[str] | None
    samples: int | None
    length: int | None
    seed: int
    bos: bool | None


def given_budget(
    ratio: float | None, params: str | None, size: str | None, layers: int | None, local_ratio: float | None
) -> dict[str, Any]:
    """What was given of a budget, by name."""
    given = {
        "ratio": ratio,
        "params": _number("params", params, "a number of parameters, as 99M, 4.9B or 4916965376"),
        "bytes": _number("bytes", size, "a number of bytes, as 200MB, 9.8GB or 9833930752"),
        "layers": layers,
        "local_ratio": local_ratio,
    }
    budget: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if budget:
        Budget(**budget)
    return budget


def _number(name: str, text: str | None, expected: str) -> int | None:
    """A count written as 4916965376, 4.9e9 or 4.9B."""
    if text is None:
        return None
    with suppress(ValueError, OverflowError):
        return round(float(text))
    with suppress(BudgetError):
        number: int | None = getattr(Budget.parse(text), name)
        if number is not None:
            return number
    raise BudgetError(f"--{name} {text!r} is not {expected}")


def given_ratios(text: str) -> tuple[float, ...]:
    """`0.2,0.27` -> (0.2, 0.27). Raises BudgetError."""
    with suppress(ValueError):
        ratios = tuple(float(word) for word in text.split(","))
        for ratio in ratios:
            Budget(ratio=ratio)
        return ratios
    raise BudgetError(f"--ratios {text!r} are not numbers separated by commas, as 0.2,0.27")


def given_protection(text: str | None) -> tuple[int, int] | None:
    """`4,2` -> (4, 2). Raises BudgetError."""
    if text is None:
        return None
    first, comma, last = text.partition(",")
    if not (comma and first.strip().isdigit() and last.strip().isdigit()):
        raise BudgetError(f"--protect {text!r} is not two numbers of layers, first and last, as 4,2")
    return int(first), int(last)
