"""Progress of long work: a bar on a terminal, nothing in a log; or told to whom it is done for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
Report = Callable[[str, int, int | None], None]  # what is done, how many steps of it, of how many

_report: Report | None = None


def progress(items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
    """Iterate over `items`, showing `what` and how far it is where stderr is a terminal."""
    if _report is None:
        return tqdm(items, desc=what, total=total, leave=False, disable=None)
    return _told(items, what, len(items) if total is None and isinstance(items, Sized) else total, _report)


def report_to(report: Report | None) -> None:
    """From now on tell `report` of each step, and show nothing; None: show it again."""
    global _report  # noqa: PLW0603 - of the process, as its stderr is
    _report = report


def _told(items: Iterable[T], what: str, total: int | None, report: Report) -> Iterator[T]:
    report(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report(what, done, total)
