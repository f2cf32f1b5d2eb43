"""What the commands share: options, errors on the terminal, text that is safe to show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from internvideo_client.errors import ApiError
from internvideo_client.http_chat import DEFAULT_URL, MODEL_ID

errors = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option(envvar="INTERNVIDEO_URL", help="the server's OpenAI API")]
ApiKey = Annotated[str | None, typer.Option(envvar="INTERNVIDEO_API_KEY", help="where the server wants one")]
Model = Annotated[str, typer.Option(help="id of the model to ask")]

__all__ = ["DEFAULT_URL", "MODEL_ID", "ApiKey", "Model", "Url", "Waiting", "bar", "errors", "failed", "reported", "show"]


@contextmanager
def reported() -> Iterator[None]:
    """Tell what goes wrong in one line, with exit code 1; a reader that went away (``| head``) is not a fault."""
    try:
        yield
    except ApiError as error:
        raise failed(error.message) from error
    except BrokenPipeError:
        # Else Python would complain once more when it flushes the closed pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise failed(f"{name}{error.strerror or error}") from error


def bar(*columns: ProgressColumn) -> Progress:
    """A bar on a terminal that goes when it is done; a pipe gets nothing."""
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


class Waiting:
    """What a terminal shows inside its ``with`` block: how much of a request is sent, then what is waited for and since when."""

    def __init__(self, what: str) -> None:
        self._what = escape(what)

    def __enter__(self) -> Self:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = bar(*columns)
        self._task = self._progress.add_task(self._what)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def sent(self, done: int, total: int) -> None:
        """Bytes of the request that are sent, and of how many."""
        share = f"sending, {100 * done // total} %"
        self._progress.update(self._task, description=share if done < total else self._what)


def failed(message: str) -> typer.Exit:
    """Print an error; the exit to raise."""
    errors.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    return typer.Exit(1)


def show(text: str) -> None:
    """Print a piece of an answer; a terminal gets no control characters, which a model may well generate."""
    if sys.stdout.isatty():
        text = "".join(char for char in text if char.isprintable() or char in "\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()
