"""The command line: prune, score, eval, inspect. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimcore.errors import BudgetError, CheckpointError, SlimcoreError
from slimcore.methods import METHODS, method_named
from slimcore.plan import PLUS_RULE, Budget, Plan, Scores, select

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from slimcore.calibration import Tokens
    from slimcore.cost import Footprint

# rich_markup_mode=None: help without rich, in half the time.
app = typer.Typer(
    help="Prune LLaMA-family language models, and see what it bought.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, smollm2-135m, a hub id, or a shape such as llama-7b.")
]
MethodName = Annotated[str, typer.Option("--method", help=f"One of: {', '.join(METHODS)}.")]
Ratio = Annotated[float | None, typer.Option(help="Share of all block parameters to remove, as 0.27.")]
Params = Annotated[str | None, typer.Option(help="Parameters to leave, as 99M, 4.9B or a whole number.")]
Layers = Annotated[int | None, typer.Option(help="Layers to remove.")]
Protect = Annotated[str, typer.Option(help="First and last layers that are never cut; 0,0 for none.")]
TextSource = Annotated[
    str | None, typer.Option("--text", help="A file, or a datasets name; default: the built-in text.")
]
Samples = Annotated[int, typer.Option(help="Calibration windows.")]
Length = Annotated[int, typer.Option(help="Tokens a window.")]
Seed = Annotated[int, typer.Option(help="Seed of the calibration windows and of random weights.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: as stored.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]

_PLUS = f"{PLUS_RULE[0]},{PLUS_RULE[1]}"


@app.command()
def prune(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model.")],
    method: MethodName = "depth-ppl",
    ratio: Ratio = None,
    params: Params = None,
    layers: Layers = None,
    protect: Protect = _PLUS,
    plan: Annotated[Path | None, typer.Option(help="Replay this plan instead of scoring.")] = None,
    text: TextSource = None,
    samples: Samples = 10,
    length: Length = 128,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,  # noqa: FBT002
) -> None:
    """Score a model's layers, cut the least important ones, and save what is left."""
    from slimcore.checkpoint import check_writable, save
    from slimcore.surgery import prune_

    check_writable(out, overwrite=force)
    rule = _protect(protect)
    if plan is not None:
        if (ratio, params, layers) != (None, None, None):
            raise BudgetError("a plan says already what goes: give --plan, or a budget, not both")
        chosen = Plan.load(plan)
        network, tokenizer = _load(model, dtype, device, seed)
    else:
        budget = _budget(ratio, params, layers)
        method_named(method)
        network, tokenizer = _load(model, dtype, device, seed)
        scores = _score(network, tokenizer, model, method, text, samples, length, seed)
        chosen = select(scores, **budget, protect=rule)
    typer.echo(str(chosen))
    prune_(network, chosen)
    save(network, out, plan=chosen, tokenizer=tokenizer, overwrite=force)
    typer.echo(f"saved: {out}")


@app.command()
def score(
    model: ModelName,
    method: MethodName = "depth-ppl",
    text: TextSource = None,
    samples: Samples = 10,
    length: Length = 128,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """Print the importance of each layer, least important first."""
    method_named(method)
    network, tokenizer = _load(model, dtype, device, seed)
    scores = _score(network, tokenizer, model, method, text, samples, length, seed)
    typer.echo(f"{method} on {scores.provenance.get('text', 'the weights alone')}; low goes first")
    typer.echo(f"{'rank':>4} {'layer':>5} {'score':>12}")
    for rank, layer in enumerate(scores.order, 1):
        typer.echo(f"{rank:>4} {layer:>5} {scores.values[layer]:>12.6g}")


@app.command("eval")
def evaluate(
    model: ModelName,
    text: TextSource = None,
    length: Length = 128,
    limit: Annotated[int | None, typer.Option(help="Tokens to measure on, from the front; default: all.")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Start each window with BOS.")] = False,  # noqa: FBT002
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """Print a model's perplexity on a held-out text."""
    from slimcore.calibration import heldout_tokens
    from slimcore.quality import perplexity

    network, tokenizer = _load(model, dtype, device, 0)
    tokens = heldout_tokens(_needed(tokenizer, model), length=length, limit=limit, bos=bos, source=text)
    result = perplexity(network, tokens)
    typer.echo(f"perplexity {result.value:.4f}")
    typer.echo(
        f"  {result.predictions:,} predictions on {tokens.text}, {tokens.ids.shape[0]} windows of {length} tokens,"
        f" {'each starting with BOS' if bos else 'no BOS'}"
    )


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(metavar="MODEL|PLAN", help="A model, as for prune, or a plan's JSON file.")],
    method: MethodName = "depth-ppl",
    ratio: Ratio = None,
    params: Params = None,
    layers: Layers = None,
    protect: Protect = _PLUS,
    dtype: Dtype = None,
) -> None:
    """Print what a model costs, or would cost after a cut, or what a plan says; no weights are needed."""
    if Path(target).is_file():
        typer.echo(str(Plan.load(target)))
        return
    from slimcore.cost import footprint
    from slimcore.methods import unscored
    from slimcore.models import load_meta
    from slimcore.surgery import prune_

    network = load_meta(target, dtype=dtype)
    before = footprint(network)
    if (ratio, params, layers) == (None, None, None):
        _print_footprints({target: before})
        return
    budget = _budget(ratio, params, layers)
    plan = select(unscored(network, method=method), **budget, protect=_protect(protect))
    prune_(network, plan)
    _print_footprints({target: before, f"{method}, {len(plan.removed)} layers fewer": footprint(network)})
    typer.echo("which layers go is for scoring to say: slimcore score, slimcore prune")


def main() -> None:
    """Run the command line; a SlimcoreError is one line on stderr and exit code 2."""
    try:
        app()
    except SlimcoreError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _load(
    name: str, dtype: str | None, device: str, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    from slimcore.models import load

    return load(name, dtype=dtype, device=device, seed=seed)


def _score(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    method: str,
    text: str | None,
    samples: int,
    length: int,
    seed: int,
) -> Scores:
    from slimcore.calibration import calibration_tokens
    from slimcore.methods import score

    tokens: Tokens | None = None
    if method_named(method).needs_tokens:
        tokens = calibration_tokens(_needed(tokenizer, name), samples=samples, length=length, seed=seed, source=text)
    return score(network, tokens, method=method)


def _needed(tokenizer: PreTrainedTokenizerBase | None, name: str) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise CheckpointError(f"{name} has no tokenizer, and a text needs one: give a model that comes with its own")
    return tokenizer


def _budget(ratio: float | None, params: str | None, layers: int | None) -> dict[str, Any]:
    count = None
    if params is not None:
        count = int(params) if params.isdigit() else Budget.parse(params).params
        if count is None:
            raise BudgetError(f"--params {params!r} is not a number of parameters, as 99M, 4.9B or 4916965376")
    Budget(ratio=ratio, params=count, layers=layers)  # refused before a model is loaded
    return {"ratio": ratio, "params": count, "layers": layers}


def _protect(text: str) -> tuple[int, int]:
    first, comma, last = text.partition(",")
    if not (comma and first.strip().isdigit() and last.strip().isdigit()):
        raise BudgetError(f"--protect {text!r} is not two numbers of layers, first and last, as {_PLUS}")
    return int(first), int(last)


def _print_footprints(columns: dict[str, Footprint]) -> None:
    """One row a cost, one column a model."""
    width = max(20, *(len(name) for name in columns))
    typer.echo(" " * 26 + "  ".join(f"{name:>{width}}" for name in columns))
    for label, field in (
        ("layers", "layers"),
        ("parameters", "parameters"),
        ("block parameters", "block_parameters"),
        ("weight bytes", "weight_bytes"),
        ("FLOPs per token", "flops_per_token"),
        ("  + per position attended", "flops_per_position"),
        ("KV cache bytes per token", "kv_bytes_per_token"),
    ):
        typer.echo(f"{label:<26}" + "  ".join(f"{getattr(c, field):>{width},}" for c in columns.values()))
