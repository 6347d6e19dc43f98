"""Windows of token ids, with the provenance that makes a score or a perplexity repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimcore import text
from slimcore.errors import TextError
from slimcore.files import sha256
from slimcore.plan import BETWEEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """Token windows and where they came from."""

    ids: Tensor  # (N, T) int64
    text: str = "given"
    text_sha256: str | None = None
    tokenizer_sha256: str | None = None
    bos: bool = False  # each window starts with the tokenizer's BOS
    seed: int | None = None
    kinds: tuple[str, ...] = ()  # of each window: its kind of the built-in text, or its text's name; empty: not known

    def describe(self) -> dict[str, Any]:
        """Provenance as JSON types, with a hash of the ids."""
        return {
            "text": self.text,
            "text_sha256": self.text_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "bos": self.bos,
            "seed": self.seed,
            "windows": list(self.ids.shape),
            "tokens_sha256": sha256(self.ids.cpu().contiguous().numpy().tobytes()),
        }


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 10,
    length: int = 128,
    seed: int = 0,
    source: str | Path | Sequence[str | Path] | None = None,
    least: int | None = None,
) -> Tokens:
    """Draw `samples` windows of `length` tokens at random, none overlapping another.

    Each document is cut into consecutive windows at a random offset; the windows are drawn without replacement.
    `source` as in `slimcore.text.read`, or several, which give equal shares; None is the calibration half of the
    built-in text. No special tokens. Raises TextError where a text is too short; where `least` windows are enough, all
    are taken that there are.
    """
    _positive(samples=samples, length=length)
    sources = [source] if source is None or isinstance(source, str | Path) else list(source)
    if not 1 <= len(sources) <= samples:
        raise TextError(f"{samples} windows cannot be shared by {len(sources)} texts: give one text, or more windows")
    generator = torch.Generator().manual_seed(seed)
    origins = [text.read(one, "calibration") for one in sources]
    drawn = [_drawn(tokenizer, origin, length, generator) for origin in origins]
    if least is not None:
        samples = max(least, min(samples, len(drawn) * min(map(len, drawn))))
    windows: list[Tensor] = []
    for i, (origin, there) in enumerate(zip(origins, drawn, strict=True)):
        share = samples // len(origins) + (i < samples % len(origins))
        if len(there) < share:
            raise TextError(
                f"{origin.name} gives {len(there)} windows of {length} tokens, {share} were asked:"
                " use a longer text, or ask for fewer or shorter windows"
            )
        windows += there[:share]
    return _tokens(tokenizer, origins, windows, bos=False, seed=seed)


def _drawn(
    tokenizer: PreTrainedTokenizerBase, origin: text.Text, length: int, generator: torch.Generator
) -> list[Tensor]:
    """All windows of a text, in the order in which they are drawn."""
    windows: list[Tensor] = []
    for ids in _tokenised(tokenizer, origin):
        spare = len(ids) % length
        offset = int(torch.randint(spare + 1, (1,), generator=generator))
        windows += ids[offset : offset + len(ids) - spare].split(length) if len(ids) >= length else []
    return [windows[i] for i in torch.randperm(len(windows), generator=generator).tolist()]


def heldout_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 128,
    limit: int | None = None,
    bos: bool = False,
    source: str | Path | None = None,
) -> Tokens:
    """Cut a text into consecutive windows of `length` tokens, to measure perplexity on; what is left over is dropped.

    `limit`: at most so many tokens, from the front. `bos`: each window starts with BOS (counted in `length`).
    `source` as in `slimcore.text.read`; None is the held-out half of the built-in text.
    Raises TextError where there is not one window.
    """
    _positive(length=length - 1, limit=1 if limit is None else limit // length)
    origin = text.read(source, "heldout")
    ids = torch.cat(_tokenised(tokenizer, origin))
    body = length - bos
    windows = list(ids[: len(ids) // body * body].split(body)) if len(ids) >= body else []
    if not windows:
        raise TextError(f"{origin.name} has {len(ids)} tokens, fewer than one window of {length}: use a longer text")
    if bos:
        if tokenizer.bos_token_id is None:
            raise TextError("bos=True, but the tokenizer has no BOS token: measure without")
        windows = [torch.cat([torch.tensor([tokenizer.bos_token_id]), w]) for w in windows]
    return _tokens(tokenizer, [origin], windows[: None if limit is None else limit // length], bos=bos, seed=None)


def as_ids(tokens: Tokens | Tensor, vocabulary: int) -> Tensor:
    """The (N, T) int64 ids of `tokens`, checked against a model's `vocabulary`. Raises TextError."""
    ids = tokens.ids if isinstance(tokens, Tokens) else tokens
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.is_floating_point():
        raise TextError(f"tokens must be integer ids (N, T) with T of 2 or more (got {ids.dtype} {tuple(ids.shape)})")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise TextError(
            f"token ids must lie within 0..{vocabulary - 1}, the model's vocabulary (got {low}..{high}):"
            " tokenise with the model's own tokenizer"
        )
    return ids.long()


def _tokenised(tokenizer: PreTrainedTokenizerBase, origin: text.Text) -> list[Tensor]:
    """The ids of each document, without special tokens."""
    # verbose=False: a whole document is longer than the model's context, and is meant to be.
    encoded = tokenizer(list(origin.documents), add_special_tokens=False, verbose=False)["input_ids"]
    return [torch.tensor(ids, dtype=torch.long) for ids in encoded]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, origins: list[text.Text], windows: list[Tensor], *, bos: bool, seed: int | None
) -> Tokens:
    vocabulary = "\0".join(f"{token}\0{i}" for token, i in sorted(tokenizer.get_vocab().items()))
    return Tokens(
        ids=torch.stack(windows),
        text=BETWEEN.join(origin.name for origin in origins),
        text_sha256=BETWEEN.join(origin.digest for origin in origins),
        tokenizer_sha256=sha256(vocabulary.encode()),
        bos=bos,
        seed=seed,
    )


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise TextError(f"{name} asks for no window at all: give at least one window of two tokens")
