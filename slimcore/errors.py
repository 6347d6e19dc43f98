"""Everything slimcore raises on bad input: the value, what was expected, what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# What allocators say in a RuntimeError, on the host and on devices.
_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory")


class SlimcoreError(Exception):
    """Base of all errors a caller may want to catch."""


class UnknownNameError(SlimcoreError):
    """A model, method, grid or other name that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{guess} (known: {', '.join(names)}){hint and '; ' + hint}")


class BudgetError(SlimcoreError):
    """A budget that is malformed, out of range, or cannot be reached."""


class TextError(SlimcoreError):
    """A text that is missing, empty or too short, or tokens that do not fit the model."""


class UnsupportedModelError(SlimcoreError):
    """A model whose family slimcore does not know, or that lacks what was asked of it."""


class CheckpointError(SlimcoreError):
    """A model that cannot be found, read or written whole."""


class DeviceError(SlimcoreError):
    """A device that is not here."""


class PlanError(SlimcoreError):
    """A plan that is malformed or does not fit its model."""


class ResultsError(SlimcoreError):
    """A grid, result or baseline that is malformed or cannot be read or written."""


class SlimcoreWarning(UserWarning):
    """Base of all warnings; the command line shows each as one line."""


class OtherWeightsWarning(SlimcoreWarning):
    """A plan is used on a model of the right shape, but was made for other weights."""


class SameTextWarning(SlimcoreWarning):
    """A perplexity is measured on a text that the model was calibrated on."""


@contextmanager
def told_as(kind: type[SlimcoreError], what: str, *, hint: str = "") -> Iterator[None]:
    """Turn what other libraries raise into `kind`: `what`, the reason they give, and in brackets the `hint`.

    A SlimcoreError passes as it is, and so does running out of memory, which is nobody's mistake.
    """
    try:
        yield
    except SlimcoreError:
        raise
    except Exception as error:  # libraries raise whatever a bad file, network or device makes them raise
        if is_out_of_memory(error):
            raise
        raise kind(f"{what}: {reason_of(error)}{hint and f' ({hint})'}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the name of its class where there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device, in `error` or in what it was raised from."""
    seen: list[BaseException] = []
    last: BaseException | None = error
    while last is not None and last not in seen:
        if _is_refusal(last):
            return True
        seen.append(last)
        last = last.__cause__ or last.__context__
    return False


def _is_refusal(error: BaseException) -> bool:
    """Whether `error` is an allocator's own."""
    torch = sys.modules.get("torch")  # where torch is not imported, it raised nothing
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
