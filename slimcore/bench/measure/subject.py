"""What a cell is measured on: a model, pruned by a method, with its footprint, perplexity and plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from slimcore.bench.grid.cells import DENSE, DTYPES, Cell, Cut, parse_method
from slimcore.bench.measure.operators import counted_by, operator_calls
from slimcore.calibration import Tokens, calibration_tokens, heldout_tokens
from slimcore.cost import footprint
from slimcore.healing import heal_
from slimcore.methods import method_named, score, unscored
from slimcore.models import is_shape, load
from slimcore.plan import HEALING_WINDOWS, Plan
from slimcore.quality import perplexity
from slimcore.scores import Scores
from slimcore.selection import select
from slimcore.surgery import prune_

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Perplexity beside a speed needs no more: 32 windows, the same for every method.
HELDOUT_TOKENS = 4096


@dataclass
class Subject:
    """A model ready to be measured, and the record of how it came to be."""

    model: PreTrainedModel
    record: dict[str, Any]


class Subjects:
    """Builds each subject once, and holds one at a time.

    Cells come ordered by subject, `dense` first, so that a model is loaded once for dense and the method after it.
    """

    def __init__(self, known: dict[tuple[str, str], dict[str, Any]] | None = None, devices: str | None = None) -> None:
        """`devices`: `auto` spreads a model over the GPUs."""
        self.loads = 0
        self._devices = devices
        self._known = known or {}  # records of an earlier run: plans and perplexities are not computed again
        self._key: tuple[str, str, str, str] | None = None
        self._subject: Subject | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._scores: dict[tuple[str, str], Scores] = {}  # the latest, by (model, method)

    def know(self, record: dict[str, Any]) -> None:
        """Take the plan and perplexity of a subject from its record, rather than find them again."""
        self._known[record["model"], record["method"]] = record

    def get(self, cell: Cell) -> Subject:
        """The subject of `cell`."""
        if self._subject is None or not self.holds(cell):
            started = perf_counter()
            model = self._dense(cell)
            # From here the held subject is being cut: not to be taken for itself where that fails.
            self._key, self._subject = None, None
            self._subject = Subject(model, self._prepare(model, cell))
            self._subject.record["seconds"] = round(perf_counter() - started, 3)
            self._key = _key(cell)
        return self._subject

    def holds(self, cell: Cell) -> bool:
        """Whether the subject of `cell` is there already."""
        return self._key == _key(cell)

    def drop(self) -> None:
        """Forget the held subject, so that its memory can be used again."""
        self._key, self._subject, self._tokenizer = None, None, None

    def _dense(self, cell: Cell) -> PreTrainedModel:
        if self._subject is not None and self._key == _key(replace(cell, method=DENSE)):
            return self._subject.model
        self.drop()
        self.loads += 1
        model, self._tokenizer = load(cell.model, dtype=DTYPES[cell.dtype], device=self._devices or cell.device)
        if not all(p.device.type == cell.device for p in model.parameters()):
            raise torch.OutOfMemoryError("the GPUs together have too little memory: some layers are on the host")
        return model

    def _prepare(self, model: PreTrainedModel, cell: Cell) -> dict[str, Any]:
        """Cut `model` in place as the cell's method says, and describe it."""
        known = self._known.get(cell.subject, {})
        cut, plan = parse_method(cell.method), None
        quality = known.get("perplexity")
        if cut is not None:
            plan = Plan.from_dict(known["plan"], where="results") if known.get("plan") else self._plan(model, cell, cut)
            # Values of weights do not change speed: what is random, or known, is not healed.
            if cut.heal and quality is None and (tokens := self._tokens(HEALING_WINDOWS)) is not None:
                plan = heal_(model, plan, tokens)
            else:
                prune_(model, plan)
        if quality is None and self._tokenizer is not None:
            quality = perplexity(model, heldout_tokens(self._tokenizer, limit=HELDOUT_TOKENS)).as_dict()
        return {
            "model": cell.model,
            "method": cell.method,
            "label": DENSE if cut is None else cut.label,
            **_counted(model, known),
            "perplexity": quality,
            # Scores of what is inside layers take a hundred times the space of the rest.
            "plan": None if plan is None else plan.without_width_scores().as_dict(),
        }

    def _plan(self, model: PreTrainedModel, cell: Cell, cut: Cut) -> Plan:
        key = (cell.model, cut.method.name)
        if key not in self._scores:  # once for all its budgets, the model's methods coming one after the other
            self._scores = {key: self._score(model, *key)}
        return select(self._scores[key], **cut.budget.as_dict(), multiple_of=cut.multiple_of)  # type: ignore[arg-type]

    def _score(self, model: PreTrainedModel, name: str, method: str) -> Scores:
        if is_shape(name):
            return unscored(model, method=method)
        return score(model, self._tokens(method_named(method).windows), method=method)

    def _tokens(self, windows: tuple[int, int] | None) -> Tokens | None:
        """Calibration windows, so many of such a length, where the model has a tokenizer."""
        if windows is None or self._tokenizer is None:
            return None
        return calibration_tokens(self._tokenizer, samples=windows[0], length=windows[1])


def _counted(model: PreTrainedModel, known: dict[str, Any]) -> dict[str, Any]:
    """The footprint and what counted it, of the record that is known where there is one."""
    if "footprint" in known:
        return {"footprint": known["footprint"], "counted_by": known.get("counted_by")}
    counted = footprint(model).as_dict() | {"operator_calls_per_token": operator_calls(model)}
    return {"footprint": counted, "counted_by": counted_by()}


def _key(cell: Cell) -> tuple[str, str, str, str]:
    return (*cell.subject, cell.dtype, cell.device)
