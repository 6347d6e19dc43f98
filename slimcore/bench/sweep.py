"""Perplexity over methods and ratios: each method scores once, is cut at every ratio, healed or not, and measured."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from slimcore import text
from slimcore.bench.grid.cells import DENSE, Cut, parse_method
from slimcore.bench.markdown import tabulated
from slimcore.bench.measure import memory
from slimcore.bench.report import pareto
from slimcore.budget import Budget
from slimcore.calibration import Tokens, calibration_tokens, heldout_tokens
from slimcore.errors import CheckpointError, ResultsError, SameTextWarning
from slimcore.files import write_text
from slimcore.healing import heal_
from slimcore.methods import score
from slimcore.models import load
from slimcore.plan import HEALING_WINDOWS
from slimcore.progress import progress
from slimcore.quality import flattered, perplexity
from slimcore.selection import select
from slimcore.surgery import prune_
from slimcore.text import BUILTIN
from slimcore.units import human
from slimcore.validation import Strict, validated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from slimcore.scores import Scores

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a sweep is of: with others, it is another sweep."""

    model: str
    methods: tuple[str, ...]  # dense, NAME, NAME+heal
    ratios: tuple[float, ...]
    texts: tuple[str, ...] = ()  # to calibrate on; empty: the built-in one
    heldout: tuple[str, ...] = (BUILTIN,)
    windows: tuple[int, int] | None = None  # of scoring; None: each method's own
    heal_samples: int = HEALING_WINDOWS[0]
    limit: int = 8192  # held-out tokens of each text
    bos: bool | None = None  # None: as the tokenizer does
    seed: int = 0
    dtype: str | None = None
    device: str = "cpu"
    revision: str | None = None  # of a hub id

    def flattering(self) -> list[str]:
        """The held-out texts that are calibrated on, whatever they are called: their perplexities flatter."""
        calibrated = {text.read(source, "calibration").digest for source in self.texts or [None]}
        return [source for source in self.heldout if text.read(source, "heldout").digest in calibrated]


@dataclass(frozen=True)
class Spent(Strict):
    """What one step of a row took."""

    seconds: float
    peak_bytes: int | None  # of the process, the model included; None where it cannot be read


@dataclass(frozen=True)
class Row(Strict):
    """One cut, measured."""

    method: str  # without its ratio
    ratio: float  # asked for; 0 for dense
    achieved: float
    parameters: int
    perplexity: dict[str, float | None]  # by held-out text; None beyond any float
    score: Spent | None = None
    heal: Spent | None = None


def sweep(settings: Settings, folder: Path) -> Path:
    """Add what `folder` lacks of the sweep, a row at a time; write table and figure of all; return the table's path.

    Warns where a held-out text is calibrated on too. Raises ResultsError where the folder holds another sweep.
    """
    flattering = settings.flattering()
    for source in flattering:
        warnings.warn(flattered(source), SameTextWarning, stacklevel=2)
    cuts = [(method, parse_method(_spec(method, ratio)), ratio)
            for method in settings.methods for ratio in (settings.ratios if method != DENSE else (0.0,))]  # fmt: skip
    path = folder / "sweep.json"
    rows = _known(path, settings)
    done = {(row.method, row.ratio) for row in rows}
    work = _Work(settings)
    for method, cut, ratio in progress([c for c in cuts if (c[0], c[2]) not in done], "sweep"):
        rows.append(work.row(method, ratio, cut))
        _write(path, settings, rows)
    order = list(dict.fromkeys([*settings.methods, *(row.method for row in rows)]))
    rows.sort(key=lambda row: (order.index(row.method), row.ratio))
    _write(path, settings, rows)
    pareto.draw(_panels(rows), "share of block parameters removed", folder / "quality.png")
    report = folder / "sweep.md"
    write_text(report, described(settings, rows, flattering) + "\n\n![Perplexity against size](quality.png)\n")
    return report


def described(settings: Settings, rows: Sequence[Row], flattering: Sequence[str]) -> str:
    """The sweep as a Markdown table, and under what conditions it was made; `flattering` as `Settings.flattering`."""
    table = [
        {
            "method": row.method,
            "ratio": f"{row.achieved:.1%}" if row.ratio else "",
            "parameters": f"{row.parameters:,}",
            **{name: _figure(value) for name, value in row.perplexity.items()},
            "scored in": _cost(row.score),
            "healed in": _cost(row.heal),
        }
        for row in rows
    ]
    windows = "{} windows of {} tokens".format(*settings.windows) if settings.windows else "each method's own windows"
    texts = ", ".join(Path(source).name for source in settings.texts) or "the built-in text"
    bos = {None: "BOS as the tokenizer has it", True: "each starting with BOS", False: "no BOS"}[settings.bos]
    note = (
        f"{settings.model}. Perplexity on {settings.limit:,} held-out tokens of each text, windows of 128, {bos}."
        f" Scored on {windows}, healed on {settings.heal_samples} of 128, of {texts}; seconds, and the process's peak"
        " memory, the model's own included."
    )
    warned = "".join(f"\n\n**Warning**: {flattered(Path(source).name)}." for source in flattering)
    return f"{tabulated(table)}\n\n{note}{warned}"


class _Work:
    """Holds the scores of one method at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scores: tuple[str, Scores, Spent] | None = None

    def row(self, method: str, ratio: float, cut: Cut | None) -> Row:
        """One cut, from loading the model to its perplexities."""
        model, tokenizer = self._load()
        scored: Spent | None = None
        healed: Spent | None = None
        achieved = 0.0
        if cut is not None:
            scores, scored = self._score(model, tokenizer, cut)
            plan = select(scores, **cut.budget.as_dict())  # type: ignore[arg-type]
            achieved = plan.ratio
            if cut.heal:
                tokens = self._tokens(tokenizer, self._settings.heal_samples, HEALING_WINDOWS[1])
                _, healed = self._measured(lambda: heal_(model, plan, tokens))
            else:
                prune_(model, plan)
        found: dict[str, float | None] = {}
        for source in self._settings.heldout:
            tokens = heldout_tokens(tokenizer, limit=self._settings.limit, bos=self._settings.bos, source=source)
            value = perplexity(model, tokens).value
            found[tokens.text] = value if math.isfinite(value) else None
        parameters = sum(p.numel() for p in model.parameters())
        return Row(method, ratio, achieved, parameters, found, scored, healed)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        asked = self._settings
        model, tokenizer = load(asked.model, dtype=asked.dtype, device=asked.device, revision=asked.revision)
        if tokenizer is None:
            raise CheckpointError(f"{asked.model} has no tokenizer, and a sweep measures on text: give another model")
        return model, tokenizer

    def _score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cut: Cut) -> tuple[Scores, Spent]:
        """The scores of the cut's method, taken once; seconds and peak memory of that."""
        name = cut.method.name
        if self._scores is None or self._scores[0] != name:
            windows = self._settings.windows if cut.method.windows and self._settings.windows else cut.method.windows
            tokens = None if windows is None else self._tokens(tokenizer, *windows)
            self._scores = (name, *self._measured(lambda: score(model, tokens, method=name)))
        return self._scores[1:]

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, samples: int, length: int) -> Tokens:
        settings = self._settings
        return calibration_tokens(
            tokenizer, samples=samples, length=length, seed=settings.seed, bos=settings.bos,
            source=list(settings.texts) or None,
        )  # fmt: skip

    def _measured(self, work: Callable[[], T]) -> tuple[T, Spent]:
        device = self._settings.device.partition(":")[0]
        known, start = memory.forget_peak(device), perf_counter()
        result = work()
        return result, Spent(round(perf_counter() - start, 3), memory.peak(device) if known else None)


def _known(path: Path, settings: Settings) -> list[Row]:
    """Rows that are there already, of these methods and ratios or others."""
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        theirs, rows = dict(data["settings"]), list(data["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is not a sweep ({error}): choose another folder") from None
    mine = json.loads(json.dumps(asdict(settings)))
    differs = [name for name in mine if name not in ("methods", "ratios") and mine[name] != theirs.get(name)]
    if differs:
        name = differs[0]
        raise ResultsError(
            f"{path} is a sweep with {name} {theirs.get(name)!r}, this has {mine[name]!r}: choose another folder"
        )
    return [validated(Row, row, f"{path}, row {n}", ResultsError) for n, row in enumerate(rows, 1)]


def _write(path: Path, settings: Settings, rows: Sequence[Row]) -> None:
    told = {"settings": asdict(settings), "rows": [asdict(row) for row in rows]}
    write_text(path, json.dumps(told, indent=1, allow_nan=False) + "\n")


def _panels(rows: Sequence[Row]) -> dict[str, list[pareto.Point]]:
    """One panel a held-out text."""
    return {
        name: [
            pareto.point_of(_spec(row.method, row.ratio), row.achieved, value)
            for row in rows
            if (value := row.perplexity[name]) is not None
        ]
        for name in rows[0].perplexity
    }


def _spec(method: str, ratio: float) -> str:
    """A method and its ratio as grids write them."""
    return method if method == DENSE else f"{method}:{Budget(ratio=ratio)}"


def _figure(perplexity: float | None) -> str:
    return "inf" if perplexity is None else f"{perplexity:.2f}" if perplexity < 1e3 else f"{perplexity:.1e}"


def _cost(spent: Spent | None) -> str:
    if spent is None:
        return ""
    return f"{spent.seconds:.3g} s" + (f", {human(spent.peak_bytes, 'B')}" if spent.peak_bytes else "")
