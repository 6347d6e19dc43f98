"""One cell on its model, generated again and again, with the time of every token.

The process that runs it collects no garbage meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slimcore.bench.measure import memory
from slimcore.bench.measure.clocks import Timeline
from slimcore.bench.measure.nvml import energy
from slimcore.errors import TextError
from slimcore.structure import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slimcore.bench.grid.cells import Cell
    from slimcore.bench.measure.engines import Engine


@dataclass(frozen=True)
class Ran:
    """One generate."""

    seconds: tuple[float, ...]  # from its beginning to each token
    joules: float | None = None  # of the GPUs, meanwhile; None where they do not say


@dataclass
class Generation:
    """One cell, ready to be run."""

    model: PreTrainedModel
    engine: Engine
    cell: Cell
    lengths: Collection[int]  # numbers of tokens at which the peak of memory is to be known
    sample: bool = False  # draw tokens rather than take the likeliest
    peaks: dict[int, int] = field(default_factory=dict)  # of the first run, by length; empty where they cannot be read

    def __post_init__(self) -> None:
        """Draw the prompt. Raises TextError where prompt and new tokens are more than the model's context."""
        cell, config = self.cell, self.model.config
        check_context(self.model, cell)
        special = {i for i in (config.bos_token_id, config.pad_token_id) if isinstance(i, int)}
        eos = config.eos_token_id
        special |= {eos} if isinstance(eos, int) else set(eos or ())
        device = "cpu" if cell.device == "cpu" else self.model.device
        self._ids = prompt(config.vocab_size, special, (cell.batch, cell.input_tokens), seed=0).to(device)
        self.gpus = gpus_of(self.model) if cell.device == "cuda" else []
        self._first = True

    def run(self) -> Ran:
        """Generate once, and check the length of every row. Raises RuntimeError where it stopped early."""
        device, new_tokens = self.cell.device, self.cell.output_tokens
        first, self._first = self._first, False
        watched = self.lengths if first and not self.engine.elsewhere and self._peak_forgotten() else ()
        with torch.inference_mode():
            used = energy(self.gpus)
            timeline = Timeline(self.gpus, on_host=self.engine.elsewhere)

            def mark() -> None:
                if (count := timeline.mark()) in watched:
                    self.peaks[count] = memory.peak(device)

            output = self.engine.generate(self._ids, new_tokens, sample=self.sample, mark=mark)
            seconds = timeline.seconds()
            joules = None if used is None else (energy(self.gpus) or used) - used
        expected = (self._ids.shape[0], self._ids.shape[1] + new_tokens)
        if tuple(output.shape) != expected or len(seconds) != new_tokens:
            told = f"{len(seconds)} tokens of {new_tokens} were told" if tuple(output.shape) == expected else ""
            raise RuntimeError(told or f"generate returned {tuple(output.shape)}, not {expected}: it stopped early")
        return Ran(tuple(seconds), joules)

    def _peak_forgotten(self) -> bool:
        memory.give_back(self.cell.device)
        return memory.forget_peak(self.cell.device)


def check_context(model: PreTrainedModel, cell: Cell) -> None:
    """Raise TextError where prompt and new tokens are more than the model's context."""
    context = decoder(model).context
    if context is not None and cell.input_tokens + cell.output_tokens > context:
        raise TextError(
            f"{cell.input_tokens} input + {cell.output_tokens} output tokens are more than the {context} of the model's"
            " context: give shorter --perf-inputs or --perf-outputs"
        )


def prompt(vocabulary: int, special: set[int], shape: tuple[int, int], seed: int) -> Tensor:
    """Seeded ids (M, T) without special tokens; no two rows alike while the vocabulary lasts."""
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special])
    generator = torch.Generator().manual_seed(seed)
    ids = ordinary[torch.randint(len(ordinary), shape, generator=generator)]
    rows = min(shape[0], len(ordinary))
    ids[:rows, 0] = ordinary[torch.randperm(len(ordinary), generator=generator)[:rows]]
    return ids


def gpus_of(model: PreTrainedModel) -> list[int]:
    """Those its weights lie on; the first one where the engine has copied them and sent the model's own away."""
    return sorted({p.device.index for p in model.parameters() if p.is_cuda}) or [0]
