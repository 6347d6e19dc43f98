"""Progress of long work: a bar on a terminal, nothing in a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
    """Iterate over `items`, showing `what` and how far it is where stderr is a terminal."""
    return tqdm(items, desc=what, total=total, leave=False, disable=None)
