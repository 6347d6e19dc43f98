"""Recovery by training: low-rank updates of a pruned model's projections, merged into its weights.

As LLM-Pruner (Ma et al. 2023, arXiv 2305.11627) and Shortened LLaMA (Kim et al. 2024, arXiv 2402.02834) retrain: LoRA
of rank 8 and alpha 16 on all seven projections, AdamW at 1e-4 with warm-up and linear decay. Without dropout, so that
an interrupted run can go on to the losses of one that was not.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from slimcore.calibration import as_ids, calibration_tokens
from slimcore.checkpoint import PLAN_FILE, save
from slimcore.digest import digest
from slimcore.errors import CheckpointError
from slimcore.files import new_file, new_folder, write_text
from slimcore.models import load
from slimcore.plan import Plan
from slimcore.progress import progress
from slimcore.replacing import check_writable
from slimcore.structure import decoder
from slimcore.training import Training, order_of, rate_at

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCHEMA = "slimcore.recovery/1"
RECOVERY_FILE, CURVE_FILE = "recovery.json", "recovery.png"


@dataclass(frozen=True)
class Recovery:
    """What a recovery took, and how the loss went."""

    steps: int
    losses: list[float]  # mean next-token NLL of each step's batch, before the step
    seconds: float  # of training, interruptions left out


def recover(
    folder: str | Path,
    out: str | Path,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    steps: int = 200,
    batch_size: int = 8,
    length: int = 128,
    rank: int = 8,
    learning_rate: float = 1e-4,
    bos: bool | None = None,
    seed: int = 0,
    every: int = 50,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
) -> Recovery:
    """Train the pruned model in `folder` on a text, and write it to `out`, in the shape and dtype it had.

    `text` as `source` of `calibration_tokens`, and `bos` as there; None is the calibration half of the built-in text.
    A step takes `batch_size` windows of `length` tokens; all windows come once before one comes again.
    `learning_rate` is the highest, after a tenth of the steps. Training is in float32: 4 bytes a parameter. `out` gets
    recovery.json and recovery.png too.

    `every` so many steps what is needed to go on is written to a hidden folder beside `out`: called again with the
    same arguments after an interruption, the training goes on from there. Raises CheckpointError, TextError.
    """
    folder, out = Path(folder), Path(out).resolve()
    _check_numbers(steps=steps, batch_size=batch_size, rank=rank, every=every, learning_rate=learning_rate)
    check_writable(out, overwrite=overwrite)
    _check_packages()
    plan = Plan.load(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
    model, tokenizer = load(folder, device=device)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer, and a text needs one: save the model with its own")
    tokens = calibration_tokens(
        tokenizer, samples=steps * batch_size, length=length, seed=seed, source=text, bos=bos, least=batch_size
    )
    if plan is not None:
        plan = plan.with_recovery(tokens.describe())
    ids = as_ids(tokens, decoder(model))
    # What the losses depend on, but for rounding.
    arguments = {
        "schema": SCHEMA,
        "weights_sha256": digest(model),
        "tokenizer_sha256": tokens.tokenizer_sha256,
        "text_sha256": tokens.text_sha256,
        "bos": tokens.bos,
        "steps": steps,
        "batch_size": batch_size,
        "length": length,
        "rank": rank,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    work = out.with_name(f".{out.name}.recovering")
    earlier = _read_state(work, arguments)
    dtype = model.dtype
    training = Training(model.float(), rank, seed)  # half-precision gradients underflow
    if earlier is not None:
        training.restore_(*earlier)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _train_(training, ids, arguments, every, work)
        merged: Any = training.adapted.merge_and_unload()
        done = Recovery(steps, training.losses, training.seconds)
        with new_folder(out) as beside:
            save(merged.to(dtype), beside, plan=plan, tokenizer=tokenizer)
            report = arguments | {"text": tokens.describe(), "source": str(folder)} | asdict(done)
            write_text(beside / RECOVERY_FILE, json.dumps(report, indent=1) + "\n")
            _draw(done.losses, f"recovery of {folder.resolve().name}", beside / CURVE_FILE)
    except OSError as error:
        raise CheckpointError(f"cannot write {out} or {work}: {error}") from error
    shutil.rmtree(work)
    return done


def _train_(training: Training, ids: Tensor, arguments: dict[str, Any], every: int, work: Path) -> None:
    """Take the steps that are left."""
    steps = arguments["steps"]
    order = order_of(len(ids), steps, arguments["batch_size"], arguments["seed"])
    device = next(iter(training.weights.values())).device
    bar = progress(range(len(training.losses), steps), "recovery")
    for step in bar:
        try:
            training.step_(ids[order[step]].to(device), arguments["learning_rate"] * rate_at(step, steps))
        except CheckpointError:
            shutil.rmtree(work)  # going on from there would end here again
            raise
        if isinstance(bar, tqdm):
            bar.set_postfix_str(f"loss {training.losses[-1]:.3f}", refresh=False)
        if (step + 1) % every == 0 or step + 1 == steps:
            _write_state(work, arguments, training)


def _read_state(work: Path, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """How far an interrupted run came, and its tensors; None where there was none.

    Raises CheckpointError where it was run with other arguments, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = _state_file(work)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            reached = json.loads(file.metadata()["recovery"])
            before = reached["arguments"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot go on from {path}: {error}; delete {work} to start anew") from error
    differ = [name for name in arguments if before.get(name) != arguments[name]]
    if differ:
        then, now = (", ".join(f"{name}={a.get(name)}" for name in differ) for a in (before, arguments))
        raise CheckpointError(
            f"{work} holds an interrupted recovery with {then}, this one has {now}: go on with the same arguments and"
            " model, or delete that folder to start anew"
        )
    return reached, tensors


def _write_state(work: Path, arguments: dict[str, Any], training: Training) -> None:
    """Write how far the training has come."""
    from safetensors.torch import save_file

    reached = {"arguments": arguments, "losses": training.losses, "seconds": training.seconds}
    with new_file(_state_file(work)) as beside:
        save_file(training.tensors(), beside, metadata={"recovery": json.dumps(reached)})


def _state_file(work: Path) -> Path:
    return work / "state.safetensors"


def _check_numbers(learning_rate: float, **counts: int) -> None:
    """Raise CheckpointError for what no training can be made of."""
    for name, value in counts.items():
        if value < 1:
            raise CheckpointError(f"{name} must be 1 or more to train at all (got {value})")
    if not 0 < learning_rate < math.inf:
        raise CheckpointError(f"the learning rate must be a number above 0, as 1e-4 (got {learning_rate:g})")


def _check_packages() -> None:
    """Raise CheckpointError where recovery's own packages are missing: before the work, not after it."""
    missing = [name for name in ("peft", "matplotlib") if find_spec(name) is None]
    if missing:
        raise CheckpointError(f"recovery needs {' and '.join(missing)}: pip install 'slimcore[recover]'")


def _draw(losses: Sequence[float], title: str, path: Path) -> None:
    """Draw the loss of each step, and its mean over a twentieth of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, 3.7), layout="constrained")
    panel = figure.subplots()
    span = max(1, len(losses) // 20)
    numbers = range(1, len(losses) + 1)
    panel.plot(numbers, losses, ".-", color="#56B4E9", linewidth=0.6, markersize=3, label="each step")
    if span > 1:
        means = [sum(losses[i - span : i]) / span for i in numbers[span - 1 :]]
        panel.plot(numbers[span - 1 :], means, color="#D55E00", linewidth=1.4, label=f"mean of {span} steps")
        panel.legend(fontsize=8, frameon=False)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("step")
    panel.set_ylabel("loss (nats a token)")
    panel.set_title(title, fontsize=10)
    panel.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    figure.savefig(path, dpi=160)
