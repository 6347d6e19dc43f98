"""Training low-rank updates of all projections: adapters, optimizer, schedule, what an interruption must not lose."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimcore.errors import CheckpointError
from slimcore.structure import PROJECTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP = 1.0  # of the gradient's norm
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of a weight, beside the number of steps


class Training:
    """Adapters on a model, their optimizer, and how far they have come."""

    def __init__(self, model: PreTrainedModel, rank: int, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.default_generator.manual_seed(seed)
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads what transformers has deprecated
            self.adapted = get_peft_model(model, config)
        self.weights = {name: p for name, p in self.adapted.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), weight_decay=0.0)
        self.losses: list[float] = []
        self.seconds = 0.0

    def step_(self, batch: Tensor, rate: float) -> None:
        """One step on windows (B, T). Raises CheckpointError, the weights unchanged, where it is not a finite one."""
        began = time.perf_counter()
        loss = self.adapted(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), CLIP)
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            raise CheckpointError(
                f"step {len(self.losses) + 1} has loss {loss.item():g} and a gradient of norm {norm.item():g}, which"
                " must be finite: nothing is saved; try a lower learning rate, and see that the model's perplexity"
                " is finite to begin with"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.seconds += time.perf_counter() - began

    def tensors(self) -> dict[str, Tensor]:
        """Adapter weights and optimizer moments by name."""
        found = {name: p.detach() for name, p in self.weights.items()}
        for name, weight in self.weights.items():
            found |= {f"{moment}.{name}": self.optimizer.state[weight][moment] for moment in MOMENTS}
        return found

    def restore_(self, reached: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` and `reached` say."""
        self.losses, self.seconds = list(reached["losses"]), float(reached["seconds"])
        for name, weight in self.weights.items():
            weight.data.copy_(tensors[name])
            moments = {moment: tensors[f"{moment}.{name}"].to(weight.device, copy=True) for moment in MOMENTS}
            self.optimizer.state[weight] = {"step": torch.tensor(float(len(self.losses)))} | moments


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at `step`, from 0: up for a tenth of the steps, 100 at most, then down towards 0."""
    warmup = min(100, steps // 10)
    return min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))


def order_of(windows: int, steps: int, batch_size: int, seed: int) -> Tensor:
    """The windows of each step, (steps, batch_size): all of them shuffled, then shuffled again, and so on."""
    generator = torch.Generator().manual_seed(seed)
    rounds = math.ceil(steps * batch_size / windows)
    drawn = torch.cat([torch.randperm(windows, generator=generator) for _ in range(rounds)])
    return drawn[: steps * batch_size].view(steps, batch_size)
