"""Progress of a worker's long work, drawn where stderr is a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class Bar:
    """One bar at a time: a worker's reports move it."""

    def __init__(self) -> None:
        self._bar: Any = None  # of tqdm
        self._what = ""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """`done` steps of `total` of `what` are behind us."""
        if self._bar is None or what != self._what or done < self._bar.n:
            self.close()
            self._bar, self._what = tqdm(desc=what, total=total, leave=False, disable=None), what
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
