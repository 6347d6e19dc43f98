"""The command line's part on pruning: prune, score, recover, eval, inspect; heavy imports are late."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimcore.budget import Budget
from slimcore.errors import CheckpointError
from slimcore.methods import method_named
from slimcore.options import (
    Allocation,
    Bos,
    Bytes,
    Device,
    Dtype,
    Force,
    HealSamples,
    Layers,
    Length,
    LocalRatio,
    MethodName,
    Metric,
    ModelName,
    MultipleOf,
    Params,
    Protect,
    Ratio,
    Revision,
    Samples,
    Seed,
    Source,
    TextSource,
    TextSources,
    Windows,
    given_budget,
    given_protection,
)
from slimcore.plan import HEALING_WINDOWS, Plan
from slimcore.scores import Scores
from slimcore.selection import select

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from slimcore.calibration import Tokens


def prune(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model.")],
    method: MethodName = "depth-ppl",
    ratio: Ratio = None,
    params: Params = None,
    bytes: Bytes = None,  # noqa: A002
    layers: Layers = None,
    local_ratio: LocalRatio = None,
    multiple_of: MultipleOf = 1,
    protect: Protect = None,
    metric: Metric = None,
    allocation: Allocation = None,
    plan: Annotated[
        Path | None, typer.Option(help="Replay this plan; with a budget, the method goes on after it.")
    ] = None,
    heal: Annotated[bool, typer.Option("--heal", help="Refit what is next to each gap.")] = False,  # noqa: FBT002
    heal_samples: HealSamples = HEALING_WINDOWS[0],
    text: TextSources = None,
    samples: Samples = None,
    length: Length = None,
    bos: Bos = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
    revision: Revision = None,
    force: Force = False,  # noqa: FBT002
) -> None:
    """Score a model's structures, cut the least important ones, and save what is left."""
    from slimcore.checkpoint import save
    from slimcore.healing import heal_
    from slimcore.methods import unscored
    from slimcore.replacing import check_room, check_writable
    from slimcore.surgery import prune_

    replaced = check_writable(out, overwrite=force)
    first = None if plan is None else Plan.load(plan).unhealed()
    budget = given_budget(ratio, params, bytes, layers, local_ratio)
    goes_on = first is None or budget
    if goes_on:
        Budget(**budget)  # refused before a model is loaded, and so is the next
        method_named(method).metric(metric)
    rule = given_protection(protect)
    source, asked = Source(model, dtype, device, seed, revision), Windows(text, samples, length, seed, bos)
    network, tokenizer = _load(source)
    # A text that is too short is refused before the long work.
    windows = _tokens(tokenizer, model, asked, heal_samples, length or HEALING_WINDOWS[1]) if heal else None

    def cut(chosen: Plan) -> Plan:
        """Cut, heal where that is asked, and say so."""
        if windows is None:
            prune_(network, chosen)
        else:
            chosen = heal_(network, chosen, windows)
        typer.echo(str(chosen))
        return chosen

    chosen = first
    if first is not None:
        chosen = first = cut(first)
    if goes_on:
        options: dict[str, Any] = budget | {"multiple_of": multiple_of, "allocation": allocation, "protect": rule}
        # What cannot be met, or has no room on the disk, is refused before the long work.
        left = select(unscored(network, method=method), **options).parameters
        check_room(out, left * network.lm_head.weight.element_size())
        scores = _score(network, tokenizer, model, method, metric, rule, asked)
        second = cut(select(scores, **options))
        chosen = second if first is None else first.then(second)
    save(network, out, plan=chosen, tokenizer=tokenizer, overwrite=force)
    _say_saved(out, replaced)


def score(
    model: ModelName,
    method: MethodName = "depth-ppl",
    metric: Metric = None,
    protect: Protect = None,
    text: TextSources = None,
    samples: Samples = None,
    length: Length = None,
    bos: Bos = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
    revision: Revision = None,
) -> None:
    """Print the importance of each layer, least important first, or of what is inside each."""
    method_named(method).metric(metric)
    network, tokenizer = _load(Source(model, dtype, device, seed, revision))
    asked = Windows(text, samples, length, seed, bos)
    scores = _score(network, tokenizer, model, method, metric, given_protection(protect), asked)
    typer.echo(f"{method} on {scores.provenance.get('text', 'the weights alone')}; low goes first")
    if scores.values:
        typer.echo(f"{'rank':>4} {'layer':>5} {'score':>12}")
        for rank, layer in enumerate(scores.order, 1):
            typer.echo(f"{rank:>4} {layer:>5} {scores.values[layer]:>12.6g}")
        return
    columns = [f"{kind} {which}" for kind in ("KV group", "channel") for which in ("lowest", "median", "highest")]
    typer.echo("layer " + " ".join(f"{name:>16}" for name in columns))
    for layer, widths in enumerate(scores.widths):
        if not widths.channels:
            typer.echo(f"{layer:>5}   protected: not scored")
            continue
        figures = [f(v) for v in (widths.kv_groups, widths.channels) for f in (min, median, max)]
        typer.echo(f"{layer:>5} " + " ".join(f"{figure:>16.6g}" for figure in figures))


def recover(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    text: TextSources = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Windows in a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 128,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA updates.")] = 8,
    learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate, reached after a tenth of the steps.")
    ] = 1e-4,
    bos: Bos = None,
    seed: Seed = 0,
    every: Annotated[int, typer.Option(help="Save the state of the training every so many steps.")] = 50,
    device: Device = "cpu",
    force: Force = False,  # noqa: FBT002
) -> None:
    """Train a pruned model by LoRA, merged at the end; run it again to go on after an interruption."""
    from slimcore.recovery import recover as recovered
    from slimcore.replacing import check_writable

    replaced = check_writable(out, overwrite=force)
    done = recovered(model, out, text=text or None, steps=steps, batch_size=batch_size, length=length, rank=rank,
                     learning_rate=learning_rate, bos=bos, seed=seed, every=every, device=device,
                     overwrite=force)  # fmt: skip
    few = max(1, steps // 20)
    first, last = fmean(done.losses[:few]), fmean(done.losses[-few:])
    typer.echo(f"loss {first:.3f} -> {last:.3f} in {done.steps} steps, {done.seconds:.0f} s")
    _say_saved(out, replaced)


def evaluate(
    model: ModelName,
    text: TextSource = None,
    length: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Tokens to measure on, from the front; default: all.")] = None,
    bos: Bos = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    revision: Revision = None,
) -> None:
    """Print a model's perplexity on a held-out text."""
    from slimcore.calibration import heldout_tokens
    from slimcore.checkpoint import PLAN_FILE
    from slimcore.quality import perplexity

    network, tokenizer = _load(Source(model, dtype, device, revision=revision))
    tokens = heldout_tokens(_needed(tokenizer, model), length=length, limit=limit, bos=bos, source=text)
    path = Path(model) / PLAN_FILE
    result = perplexity(network, tokens, plan=Plan.load(path) if path.is_file() else None)
    typer.echo(f"perplexity {result.value:.4f}")
    typer.echo(
        f"  {result.predictions:,} predictions on {tokens.text}, {tokens.ids.shape[0]} windows of {length} tokens,"
        f" {'each starting with BOS' if tokens.bos else 'no BOS'}"
    )


def _say_saved(out: Path, replaced: str | None) -> None:
    typer.echo(f"saved: {out}" + (f" (in place of {replaced})" if replaced else ""))


def _load(source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    from slimcore.models import load

    return load(source.name, dtype=source.dtype, device=source.device, seed=source.seed, revision=source.revision)


def _score(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    method: str,
    metric: str | None,
    protect: tuple[int, int] | None,
    asked: Windows,
) -> Scores:
    from slimcore.methods import score

    chosen, tokens = method_named(method), None
    if chosen.needs_tokens(metric):
        samples, length = chosen.windows or (0, 0)
        tokens = _tokens(
            tokenizer,
            name,
            asked,
            samples if asked.samples is None else asked.samples,
            length if asked.length is None else asked.length,
        )
    return score(network, tokens, method=method, metric=metric, protect=protect, seed=asked.seed)


def _tokens(tokenizer: PreTrainedTokenizerBase | None, name: str, asked: Windows, samples: int, length: int) -> Tokens:
    from slimcore.calibration import calibration_tokens

    return calibration_tokens(
        _needed(tokenizer, name),
        samples=samples,
        length=length,
        seed=asked.seed,
        source=asked.text or None,
        bos=asked.bos,
    )


def _needed(tokenizer: PreTrainedTokenizerBase | None, name: str) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise CheckpointError(f"{name} has no tokenizer, and a text needs one: give a model that comes with its own")
    return tokenizer
