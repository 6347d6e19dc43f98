"""Windows of token ids, with the provenance that makes a score or a perplexity repeatable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimcore import text
from slimcore.errors import TextError, told_as
from slimcore.files import sha256
from slimcore.plan import BETWEEN
from slimcore.structure import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Windows = list[tuple[str, Tensor]]  # each with its kind


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

    @property
    def text_hashes(self) -> frozenset[str]:
        """SHA-256 of each text: texts are the same where these are, whatever their paths and names."""
        return frozenset(self.text_sha256.split(BETWEEN) if self.text_sha256 else ())

    def describe(self) -> dict[str, Any]:
        """Provenance as JSON types, with a hash of the ids."""
        return {
            "text": self.text,
            "text_sha256": self.text_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "bos": self.bos,
            "seed": self.seed,
            "windows": list(self.ids.shape),
            "kinds": dict(Counter(self.kinds)),
            "tokens_sha256": sha256(self.ids.cpu().contiguous().numpy().tobytes()),
        }


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 10,
    length: int = 128,
    seed: int = 0,
    bos: bool | None = None,
    source: str | Path | Sequence[str | Path] | None = None,
    least: int | None = None,
) -> Tokens:
    """Draw `samples` windows of `length` tokens at random, none overlapping another, each from one document.

    Each document is cut into consecutive windows at a random offset; the windows are drawn without replacement.
    `source` as in `slimcore.text.read`, or several, which give equal shares; None is the calibration half of the
    built-in text, whose kinds give equal shares of its share. `bos`: each window starts with BOS (counted in
    `length`); None: where the tokenizer itself adds it. Raises TextError where a text is too short; where `least`
    windows are enough, all are taken that there are.
    """
    first = _bos(tokenizer, bos)
    _positive(samples=samples, length=length - len(first))
    sources = [source] if source is None or isinstance(source, str | Path) else list(source)
    if not 1 <= len(sources) <= samples:
        raise TextError(f"{samples} windows cannot be shared by {len(sources)} texts: give one text, or more windows")
    generator = torch.Generator().manual_seed(seed)
    origins = [text.read(one, "calibration") for one in sources]
    drawn = [_drawn(tokenizer, origin, length - len(first), generator) for origin in origins]
    if least is not None:
        samples = max(least, min(samples, len(drawn) * min(len(of) * min(map(len, of.values())) for of in drawn)))
    windows: Windows = []
    for origin, of_kind, share in zip(origins, drawn, _shares(samples, len(drawn)), strict=True):
        for (kind, there), part in zip(of_kind.items(), _shares(share, len(of_kind)), strict=True):
            _check_enough(origin, kind, there, part, length)
            windows += [(kind, window) for window in there[:part]]
    return _tokens(tokenizer, origins, windows, first, seed)


def heldout_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 128,
    limit: int | None = None,
    bos: bool | None = None,
    source: str | Path | None = None,
) -> Tokens:
    """Cut a text into consecutive windows of `length` tokens, to measure perplexity on; what is left over is dropped.

    `source` as in `slimcore.text.read`; its documents are joined by blank lines. None is the held-out half of the
    built-in text: windows of its kinds in turn, as many of each, from one document each. `limit`: at most so many
    tokens, from the front. `bos`: each window starts with BOS (counted in `length`); None: where the tokenizer itself
    adds it. Raises TextError where there is not one window.
    """
    first = _bos(tokenizer, bos)
    _positive(length=length - 1, limit=1 if limit is None else limit // length)
    origin = text.read(source, "heldout")
    body = length - len(first)
    if origin.kinds:
        of_kind = {
            kind: _in_turn([_cut(ids, body) for ids in _tokenised(tokenizer, documents)])
            for kind, documents in origin.by_kind().items()
        }
    else:
        whole = "\n\n".join(_rendered(tokenizer, document) for document in origin.documents)
        of_kind = {origin.name: _cut(_tokenised(tokenizer, [whole])[0], body)}
    for kind, there in of_kind.items():
        _check_enough(origin, kind, there, 1, length)
    windows = [pair for row in zip(*of_kind.values(), strict=False) for pair in zip(of_kind, row, strict=True)]
    return _tokens(tokenizer, [origin], windows[: None if limit is None else limit // length], first, None)


def as_ids(tokens: Tokens | Tensor, view: Decoder) -> Tensor:
    """The (N, T) int64 ids of `tokens`, checked against a model's vocabulary and context. Raises TextError."""
    ids = tokens.ids if isinstance(tokens, Tokens) else tokens
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.is_floating_point():
        raise TextError(f"tokens must be integer ids (N, T) with T of 2 or more (got {ids.dtype} {tuple(ids.shape)})")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= view.vocabulary:
        raise TextError(
            f"token ids must lie within 0..{view.vocabulary - 1}, the model's vocabulary (got {low}..{high}):"
            " tokenise with the model's own tokenizer"
        )
    if view.context is not None and ids.shape[1] > view.context:
        raise TextError(
            f"windows of {ids.shape[1]} tokens are longer than the model's context of {view.context}:"
            f" use shorter windows (length of {view.context} or less; on the command line --length)"
        )
    return ids.long()


def _drawn(
    tokenizer: PreTrainedTokenizerBase, origin: text.Text, length: int, generator: torch.Generator
) -> dict[str, list[Tensor]]:
    """All windows of each kind of a text, in the order in which they are drawn."""
    drawn = {}
    for kind, documents in origin.by_kind().items():
        windows: list[Tensor] = []
        for ids in _tokenised(tokenizer, documents):
            offset = int(torch.randint(len(ids) % length + 1, (1,), generator=generator))
            windows += _cut(ids[offset:], length)
        drawn[kind] = [windows[i] for i in torch.randperm(len(windows), generator=generator).tolist()]
    return drawn


def _cut(ids: Tensor, length: int) -> list[Tensor]:
    """Consecutive windows from the front."""
    return list(ids[: len(ids) // length * length].view(-1, length))


def _in_turn(lists: Sequence[list[Tensor]]) -> list[Tensor]:
    """The first of each list, then the second of each, and so on."""
    return [one for row in zip_longest(*lists) for one in row if one is not None]


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` that are equal, or one more in the first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _bos(tokenizer: PreTrainedTokenizerBase, bos: bool | None) -> list[int]:  # noqa: FBT001
    """BOS where windows start with it, else nothing; None: as the tokenizer has it."""
    token = tokenizer.bos_token_id
    if bos and token is None:
        raise TextError("bos=True, but the tokenizer has no BOS token: go without (bos=False; --no-bos)")
    return [token] if (_adds_bos(tokenizer) if bos is None else bos) else []


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    token = tokenizer.bos_token_id
    return token is not None and tokenizer("a")["input_ids"][:1] == [token]


def _rendered(tokenizer: PreTrainedTokenizerBase, document: text.Document) -> str:
    """A document as the model reads it: a chat in the tokenizer's template, less the BOS that the tokenizer adds."""
    if isinstance(document, str):
        return document
    if tokenizer.chat_template is None:
        raise TextError("the text holds chats, and the tokenizer has no chat template: give a text without messages")
    with told_as(TextError, "the tokenizer's chat template refuses a chat of the text"):
        plain = str(tokenizer.apply_chat_template(document, tokenize=False))
    return plain.removeprefix(str(tokenizer.bos_token)) if _adds_bos(tokenizer) else plain


def _tokenised(tokenizer: PreTrainedTokenizerBase, documents: Sequence[text.Document]) -> Sequence[Tensor]:
    """The ids of each document, with no special tokens but those of a chat template."""
    return _encoded(tokenizer, len(tokenizer), tuple(_rendered(tokenizer, document) for document in documents))


@lru_cache(maxsize=16)  # scoring and healing draw from the same few texts, which take a second to tokenise
def _encoded(tokenizer: PreTrainedTokenizerBase, _size: int, documents: tuple[str, ...]) -> Sequence[Tensor]:
    # verbose=False: a whole document is longer than the model's context, and is meant to be.
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(torch.tensor(ids, dtype=torch.long) for ids in encoded)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, origins: list[text.Text], windows: Windows, first: list[int], seed: int | None
) -> Tokens:
    vocabulary = "\0".join(f"{token}\0{i}" for token, i in sorted(tokenizer.get_vocab().items()))
    start = torch.tensor(first, dtype=torch.long)
    return Tokens(
        ids=torch.stack([torch.cat([start, window]) for _, window in windows]),
        text=BETWEEN.join(origin.name for origin in origins),
        text_sha256=BETWEEN.join(origin.digest for origin in origins),
        tokenizer_sha256=sha256(vocabulary.encode()),
        bos=bool(first),
        seed=seed,
        kinds=tuple(kind for kind, _ in windows),
    )


def _check_enough(origin: text.Text, kind: str, windows: list[Tensor], asked: int, length: int) -> None:
    if len(windows) < asked:
        raise TextError(
            f"{origin.name}{f' ({kind})' if origin.kinds else ''} gives {len(windows)} windows of {length} tokens,"
            f" {asked} were asked: use a longer text, or ask for fewer or shorter windows"
        )


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise TextError(f"{name} asks for no window at all: give at least one window of two tokens")
