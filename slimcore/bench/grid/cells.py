"""Cell and Grid: what is measured, as data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slimcore.budget import Budget
from slimcore.errors import BudgetError, ResultsError
from slimcore.methods import Method, method_named
from slimcore.validation import Strict

DENSE = "dense"
HEAL = "+heal"  # after a method's name
TIMED = "timed"  # engine, method and grid of a test that times code of its own
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEVICES = ("cpu", "cuda")
WHOLE = ("compiled",)  # engines whose cache depends on how much is generated: a part of it is no cell of its own
_ID = re.compile(rf"(.+)/([^/]+)/i(\d+)-o(\d+)/m(\d+)/(.+?)-({'|'.join(DTYPES)})(?:-(\w+))?(?:#(\d+))?", re.DOTALL)

Key = tuple[str, str, str]  # of a subject: model, method, dtype


@dataclass(frozen=True)
class Cell(Strict):
    """One point of the grid; or a test that times code of its own: see `of_test`."""

    model: str
    method: str  # `dense`, or what parse_method() reads
    input_tokens: int
    output_tokens: int
    batch: int
    engine: str
    dtype: str  # fp32, fp16, bf16
    device: str  # cpu, cuda
    round: int = 1  # of --perf-aa, which measures each cell several times
    protocol: str = "adaptive"  # or paper: a measurement by another protocol is of another cell

    @property
    def id(self) -> str:
        """The cell's name in tests, results and baselines."""
        if self.timed:
            return self.model
        lengths = f"i{self.input_tokens}-o{self.output_tokens}"
        again = f"#{self.round}" if self.round > 1 else ""
        how = f"{self.engine}-{self.dtype}" + ("" if self.protocol == "adaptive" else f"-{self.protocol}")
        return f"{self.model}/{self.method}/{lengths}/m{self.batch}/{how}{again}"

    @property
    def timed(self) -> bool:
        """Whether it is a test's own code, which generates nothing."""
        return self.engine == TIMED

    @property
    def subject(self) -> Key:
        """What is built before measuring."""
        return self.model, self.method, self.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, input tokens, output tokens)."""
        return self.batch, self.input_tokens, self.output_tokens

    @classmethod
    def of_id(cls, name: str, device: str) -> Cell:
        """The cell whose id is `name`. Raises ResultsError."""
        found = _ID.fullmatch(name)
        if found is None and "::" in name:
            return cls.of_test(name, device)
        if found is None:
            raise ResultsError(f"{name!r} is no id of a cell, as llama-7b/dense/i12-o128/m8/eager-fp16")
        model, method, inputs, outputs, batch, engine, dtype, protocol, again = found.groups()
        lengths = int(inputs), int(outputs), int(batch)
        return cls(model, method, *lengths, engine, dtype, device, int(again or 1), protocol or "adaptive")

    @property
    def ladder(self) -> Cell:
        """What cells that differ in their output tokens alone have in common."""
        return replace(self, output_tokens=0)

    @classmethod
    def of_test(cls, test: str, device: str) -> Cell:
        """Of a test that times code of its own; the test's id, as `tests/test_speed.py::test_step`, is its name."""
        return cls(test, TIMED, 1, 1, 1, TIMED, "", device)

    def with_batch(self, batch: int) -> Cell:
        """The same cell at another batch size."""
        return replace(self, batch=batch)


@dataclass(frozen=True)
class Cut:
    """A method and how much it removes, as a grid writes it: NAME:BUDGET, NAME+heal:BUDGET, NAME:BUDGETxM."""

    method: Method
    budget: Budget
    multiple_of: int = 1  # xM
    heal: bool = False  # +heal

    @property
    def label(self) -> str:
        """The method in figures."""
        return self.unhealed + (", healed" if self.heal else "")

    @property
    def unhealed(self) -> str:
        """The same without healing."""
        return self.method.label + (f" x{self.multiple_of}" if self.multiple_of > 1 else "")


def shard(cells: Sequence[Cell], number: int, count: int) -> list[Cell]:
    """The part `number` (from 1) of `count` of the cells: neighbours stay together, and batches of one shape always do.

    Raises ResultsError where nothing would be left for it.
    """
    ladders = list(dict.fromkeys(replace(cell, batch=0) for cell in cells))
    own = {ladder for n, ladder in enumerate(ladders) if n * count // len(ladders) == number - 1}
    if not own:
        raise ResultsError(f"--perf-shard {number}/{count} leaves no cell: {len(ladders)} parts can be made at most")
    return [cell for cell in cells if replace(cell, batch=0) in own]


def parse_method(spec: str) -> Cut | None:
    """`dense` -> None; `flap:0.27x64`, `depth-ppl+heal:9L` -> its Cut. Raises UnknownNameError, BudgetError."""
    name, _, amount = spec.partition(":")
    if name == DENSE and not amount:
        return None
    method = method_named(name.removesuffix(HEAL))
    budget, x, multiple = amount.partition("x")
    if x and not (multiple.isdigit() and int(multiple)):
        raise BudgetError(f"{spec!r}: {multiple!r} is not a number that widths are to be multiples of, as in 0.27x64")
    return Cut(method, Budget.parse(budget), int(multiple or 1), name.endswith(HEAL))
