"""The command line's part on measurements: predict them, compare, merge, report, accept, history of saved ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimcore.errors import ResultsError
from slimcore.options import (
    Bos,
    Device,
    Dtype,
    HealSamples,
    Length,
    ModelName,
    Revision,
    Samples,
    Seed,
    TextSources,
    given_ratios,
)
from slimcore.plan import HEALING_WINDOWS

if TYPE_CHECKING:
    from slimcore.bench.records.results import Run
    from slimcore.bench.report.writing import Findings

RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, as reports/gpu-20260101.")]
Baselines = Annotated[Path, typer.Option(help="Where baselines lie.")]


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A run's folder, a night's file, or a folder of nights.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A run's folder, or a night's file.")],
) -> None:
    """Judge one saved measurement against another: exit 0 the same or better, 1 worse, 2 not to be compared."""
    from slimcore.bench.judge.saved import compared
    from slimcore.bench.report.conclusion import find
    from slimcore.bench.report.tables import comparison
    from slimcore.bench.report.writing import standing

    found = find(*compared(old, new))
    table = comparison(found.cells, found.verdicts, found.baseline)
    typer.echo("\n".join([table, "", *standing(found)]).replace("**", ""))
    if not found.passes:
        raise typer.Exit(1)


def merge(
    runs: RunFolders,
    out: Annotated[Path, typer.Option(help="Folder for the joined run.")],
    baselines: Baselines = Path("baselines"),
) -> None:
    """Join the parts of a grid (--perf-shard) and gate the whole: exit 1 where it fails."""
    from slimcore.bench.records import results
    from slimcore.bench.records.joining import join

    joined = join([results.read(run) for run in runs], out)
    if _fails(joined, baselines):
        raise typer.Exit(1)


def report(runs: RunFolders, baselines: Baselines = Path("baselines")) -> None:
    """Write the report of each run anew, against what is accepted now; exit 1 where one fails."""
    from slimcore.bench.records import results

    read = [results.read(run) for run in runs]
    failed = [run for run in read if _fails(run, baselines)]
    if failed:
        raise typer.Exit(1)


def accept(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as reports/gpu-20260101.")],
    reason: Annotated[str, typer.Option(help="Why these measurements are right.")],
    replace: Annotated[bool, typer.Option("--replace", help="Cells that moved start anew.")] = False,  # noqa: FBT002
    allow: Annotated[str, typer.Option(help="In spite of dirty,missing,inconclusive; moved: left out.")] = "",
    pin: Annotated[bool, typer.Option("--pin", help="As a release, to measure drift against.")] = False,  # noqa: FBT002
    baselines: Baselines = Path("baselines"),
) -> None:
    """Accept a saved run as a night of its machine, and print what that changes; exit 2 where it must not be."""
    from slimcore.bench.records import results
    from slimcore.bench.report import conclusion

    allowed = [word.strip() for word in allow.split(",") if word.strip()]
    update = conclusion.Update(reason, replace, allowed, pin)
    typer.echo("\n".join(conclusion.accept(_found(results.read(run), baselines), update)).strip())


def history(
    cell: Annotated[str, typer.Argument(metavar="[CELL]", help="A cell's id, or a pattern with * and ?.")] = "*",
    baselines: Baselines = Path("baselines"),
    machine: Annotated[str | None, typer.Option(help="Where there are several.")] = None,
    grid: Annotated[str | None, typer.Option(help="Where there are several.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure; default: none is drawn.")] = None,
) -> None:
    """Print how cells went over the accepted nights, where they changed, and draw it."""
    from slimcore.bench.judge.history import draw, histories, table
    from slimcore.bench.judge.saved import accepted
    from slimcore.bench.markdown import tabulated

    folders = sorted({path.parent for path in baselines.glob(f"{machine or '*'}/{grid or '*'}/*.json")})
    if len(folders) != 1:
        names = ", ".join(f"--machine {f.parent.name} --grid {f.name}" for f in folders)
        what = f"say which: {names}" if folders else "accept a run first: --perf-update"
        raise ResultsError(f"{len(folders)} baselines match in {baselines}: {what}")
    found = histories(accepted(folders[0]), cell)
    if not found:
        raise ResultsError(f"{cell} has no time on any accepted night")
    typer.echo(tabulated(table(found)))
    if out is not None:
        typer.echo(f"figure: {draw(found, out)}")


def predict(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help="Default: all of the grid.")] = None,
    gpu: Annotated[str, typer.Option(help="The device, as h100, a100-80gb, rtx4090.")] = "h100",
    grid: Annotated[str, typer.Option(help="The grid to predict.")] = "figure",
    grids: Annotated[Path, typer.Option(help="File of grids.")] = Path("perf/grids.toml"),
    methods: Annotated[str | None, typer.Option(help="In place of the grid's, separated by commas.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure; default: none is drawn.")] = None,
) -> None:
    """Print, and draw, the limits of a grid on a GPU and what cannot fit there: neither GPU nor weights are needed."""
    from slimcore.bench.grid import forecast
    from slimcore.bench.grid.grids import grid_named, load_grids
    from slimcore.bench.grid.limit import gpu_named
    from slimcore.bench.measure.protocol import Protocol
    from slimcore.bench.report import figures

    device = gpu_named(gpu)
    chosen = grid_named(load_grids(grids), grid)
    cells = chosen.narrow(models=models or None, methods=methods.split(",") if methods else None).cells()
    subjects = forecast.planned(cells)
    found = forecast.forecast(cells, subjects, device, Protocol())
    typer.echo("\n".join(forecast.limits(found, subjects, device)))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        typer.echo(f"figure: {figures.draw(figures.predicted(found), subjects, out)}")


def sweep(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for table and figure; a sweep that is there is gone on with.")],
    methods: Annotated[
        str, typer.Option(help="Separated by commas; NAME+heal: healed.")
    ] = "dense,depth-ppl,depth-ppl+heal,llm-pruner,flap",
    ratios: Annotated[str, typer.Option(help="Shares of block parameters to remove.")] = "0.2,0.27,0.35",
    text: TextSources = None,
    heldout: Annotated[list[str] | None, typer.Option(help="To measure on, as often as wanted, as --text.")] = None,
    samples: Samples = None,
    length: Length = None,
    heal_samples: HealSamples = HEALING_WINDOWS[0],
    limit: Annotated[int, typer.Option(help="Held-out tokens of each text, from the front.")] = 8192,
    bos: Bos = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
    revision: Revision = None,
) -> None:
    """Score once a method, cut at many ratios, and print and draw what each costs in perplexity."""
    from slimcore.bench.sweep import Settings
    from slimcore.bench.sweep import sweep as swept
    from slimcore.text import BUILTIN

    if (samples is None) != (length is None):
        raise ResultsError("--samples and --length go together: a sweep gives all methods the same, or each its own")
    settings = Settings(
        model=model,
        methods=tuple(word.strip() for word in methods.split(",")),
        ratios=given_ratios(ratios),
        texts=tuple(text or ()),
        heldout=tuple(heldout or (BUILTIN,)),
        windows=None if samples is None or length is None else (samples, length),
        heal_samples=heal_samples,
        limit=limit,
        bos=bos,
        seed=seed,
        dtype=dtype,
        device=device,
        revision=revision,
    )
    report = swept(settings, out)
    typer.echo(report.read_text(encoding="utf-8").rpartition("\n\n!")[0])
    typer.echo(f"report: {report}")


def _fails(run: Run, baselines: Path) -> bool:
    """Write and print the report of a run; whether a cell or the whole fails."""
    from slimcore.bench.report.conclusion import conclude

    found = _found(run, baselines)
    conclusion = conclude(found)
    typer.echo("\n".join(conclusion.lines))
    return bool(conclusion.failures) or not found.passes


def _found(run: Run, baselines: Path) -> Findings:
    """The verdicts on a run that is read."""
    from slimcore.bench.judge.judging import judge_of
    from slimcore.bench.report.conclusion import find

    if not run.starts:
        raise ResultsError(f"{run.folder} has no start: nothing was measured there")
    # A suspect that no process has measured again must show more by itself.
    return find(run, judge_of(run, baselines, alone=len(run.cells)))
