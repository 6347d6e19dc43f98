"""What a cell is measured on: a model, pruned by a method, with its costs, perplexity and plan."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from slimcore.bench.grid.cells import DENSE, DTYPES, Cell, Cut, parse_method
from slimcore.bench.measure.operators import counted_by, operator_calls
from slimcore.bench.records.records import Costs, Quality, Subject
from slimcore.calibration import Tokens, calibration_tokens, heldout_tokens
from slimcore.cost import footprint
from slimcore.digest import digest
from slimcore.errors import ResultsError
from slimcore.files import write_text
from slimcore.healing import heal_
from slimcore.methods import method_named, score, unscored
from slimcore.models import SHAPES, is_shape, load
from slimcore.plan import HEALING_WINDOWS, Plan
from slimcore.quality import perplexity
from slimcore.scores import Scores
from slimcore.selection import select
from slimcore.surgery import prune_
from slimcore.validation import validated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Perplexity beside a speed needs no more: 32 windows, the same for every method.
HELDOUT_TOKENS = 4096


class Built:
    """The subject of a cell, built: `model`, and its `record`."""

    def __init__(
        self, cell: Cell, known: Subject | None = None, *, devices: str | None = None, scores: Path | None = None
    ) -> None:
        """Load and cut.

        `known`: its record by an earlier process, whose plan and perplexity are taken. `devices`: `auto` spreads the
        model over the GPUs. `scores`: a folder where processes leave scores for each other. Raises ResultsError where
        the weights are others than those of `known`.
        """
        self._cell, self._scores = cell, scores
        started = perf_counter()
        self.model, self._tokenizer = load(cell.model, dtype=DTYPES[cell.dtype], device=devices or cell.device)
        if not all(p.device.type == cell.device for p in self.model.parameters()):
            raise torch.OutOfMemoryError("the GPUs together have too little memory: some layers are on the host")
        self._weights = weights_of(self.model, cell.model)
        if known is not None and known.weights != self._weights:
            raise ResultsError(
                f"the weights of {cell.model} are others than when this run began: start a new one, without"
                " --perf-resume"
            )
        record = self._cut(parse_method(cell.method), known)
        self.record = replace(record, seconds=round(perf_counter() - started, 3))

    def _cut(self, cut: Cut | None, known: Subject | None) -> Subject:
        """Cut the model in place as the cell's method says, and describe it."""
        plan, quality = None, known and known.perplexity
        if cut is not None:
            plan = Plan.from_dict(known.plan, where="results") if known and known.plan else self._plan(cut)
            # Values of weights do not change speed: what is random, or known, is not healed.
            if cut.heal and quality is None and (tokens := self._tokens(HEALING_WINDOWS)) is not None:
                plan = heal_(self.model, plan, tokens)
            else:
                prune_(self.model, plan)
        return Subject(
            model=self._cell.model,
            method=self._cell.method,
            dtype=self._cell.dtype,
            label=DENSE if cut is None else cut.label,
            weights=self._weights,
            costs=known.costs if known else _costs(self.model),
            counted_by=known.counted_by if known else counted_by(),
            perplexity=quality or self._quality(),
            # Scores of what is inside layers take a hundred times the space of the rest.
            plan=None if plan is None else plan.without_width_scores().as_dict(),
        )

    def _quality(self) -> Quality | None:
        if self._tokenizer is None:
            return None
        found = perplexity(self.model, heldout_tokens(self._tokenizer, limit=HELDOUT_TOKENS))
        return Quality(found.value if found.value < float("inf") else None, found.predictions, found.tokens)

    def _plan(self, cut: Cut) -> Plan:
        return select(self._scored(cut.method.name), **cut.budget.as_dict(), multiple_of=cut.multiple_of)  # type: ignore[arg-type]

    def _scored(self, method: str) -> Scores:
        """The scores of one method, found once for all its budgets."""
        if is_shape(self._cell.model):
            return unscored(self.model, method=method)
        name = sha256(f"{self._weights} {self._cell.dtype} {method}".encode()).hexdigest()[:16]
        path = None if self._scores is None else self._scores / f"{name}.json"
        if path is not None and path.exists():
            return validated(Scores, json.loads(path.read_text(encoding="utf-8")), str(path), ResultsError)
        scores = score(self.model, self._tokens(method_named(method).windows), method=method)
        if path is not None:
            write_text(path, json.dumps(asdict(scores)))
        return scores

    def _tokens(self, windows: tuple[int, int] | None) -> Tokens | None:
        """Calibration windows, so many of such a length, where the model has a tokenizer."""
        if windows is None or self._tokenizer is None:
            return None
        return calibration_tokens(self._tokenizer, samples=windows[0], length=windows[1])


def weights_of(model: PreTrainedModel, name: str) -> str:
    """Says which weights a dense model has: their hash, or its shape's, where they are random."""
    if not is_shape(name):
        return digest(model) or ""
    # Not the config of transformers: another version of it has other fields, and the same weights.
    shape = json.dumps(asdict(SHAPES[name]), sort_keys=True)
    return f"shape:{sha256(shape.encode()).hexdigest()[:16]}"


def _costs(model: PreTrainedModel) -> Costs:
    return Costs(**footprint(model).as_dict(), operator_calls_per_token=operator_calls(model))
