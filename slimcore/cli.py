"""The command line: its commands stand in `commands.py` and `bench/commands.py`; here they are put together and run."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NoReturn

import typer

from slimcore import commands
from slimcore.bench import commands as measuring
from slimcore.errors import SlimcoreError, SlimcoreWarning, is_out_of_memory, reason_of
from slimcore.inspection import inspect

# rich_markup_mode=None: help without rich, in half the time.
app = typer.Typer(
    help="Prune LLaMA-family language models, and see what it bought.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command("eval")(commands.evaluate)
for command in (
    commands.prune,
    commands.score,
    commands.recover,
    inspect,
    measuring.sweep,
    measuring.predict,
    measuring.compare,
    measuring.merge,
    measuring.report,
    measuring.accept,
    measuring.history,
):
    app.command()(command)


def main() -> None:
    """Run the command line; a SlimcoreError, or memory that runs out, is one line on stderr and exit code 2."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=SlimcoreWarning)
        warnings.showwarning = _say_warning
        try:
            app()
        except SlimcoreError as error:
            _leave(str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            _leave(f"out of memory: {reason_of(error)}; free some, or take a smaller model, --dtype or --length")


def _leave(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code that gave it."""
    typer.echo(f"warning: {message}", err=True)
