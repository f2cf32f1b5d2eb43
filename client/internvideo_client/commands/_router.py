"""``internvideo router``: HAProxy in front of several replicas."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from internvideo_server.settings import RouterSettings, options_from, variable

from ._shared import Waiting, errors, failed

router = typer.Typer()

_DEFAULT: Path = RouterSettings().router_directory
Directory = Annotated[
    Path,
    typer.Option("--router-directory", envvar=variable("router_directory"), help="of the running router", show_default=False),
]
Name = Annotated[str, typer.Argument(help="the replica's")]
Timeout = Annotated[float, typer.Option(min=0, help="seconds to wait for requests under way")]


@router.callback(invoke_without_command=True)
@options_from(RouterSettings)
def run(
    settings: RouterSettings,
    context: typer.Context,
    only_print: Annotated[bool, typer.Option("--print", help="print HAProxy's configuration and end")] = False,
) -> None:
    """Run HAProxy until Ctrl-C, one address for several replicas: a video's questions go where its frames are cached.

    The commands change a router that runs.
    """
    if context.invoked_subcommand is not None:
        return
    with _told() as module:
        if only_print:
            typer.echo(module.render(settings, settings.router_directory), nl=False)
            return
        raise typer.Exit(module.route(settings, lambda line: errors.print(line, markup=False, soft_wrap=True)))


@router.command()
def add(
    replica: Annotated[str, typer.Argument(help="NAME=URL, as of --replica")], router_directory: Directory = _DEFAULT
) -> None:
    """Take one more replica, or one again that was drained. It gets requests once it is ready."""
    with _told() as module:
        typer.echo(f"added {module.add(router_directory, replica)}")


@router.command()
def drain(name: Name, timeout: Timeout = 300.0, router_directory: Directory = _DEFAULT) -> None:
    """Give a replica nothing new but what it alone keeps, and wait until it is idle; exit code 1 if it is not in time."""
    with _told() as module, Waiting(f"{name}: requests under way"):
        left = module.drain(router_directory, name, timeout)
    if left:
        raise failed(f"{name} has {left} requests under way after {timeout:g} s; it stays drained")
    typer.echo(f"{name} is idle")


@router.command()
def remove(name: Name, timeout: Timeout = 300.0, router_directory: Directory = _DEFAULT) -> None:
    """Drain a replica and forget it; its files and responses are not found any more."""
    with _told() as module, Waiting(f"{name}: requests under way"):
        cut = module.remove(router_directory, name, timeout).cut
    typer.echo(f"removed {name}" + (f"; {cut} requests were ended" if cut else ""))


@router.command("list")
def list_replicas(router_directory: Directory = _DEFAULT) -> None:
    """Show the replicas and what each does now."""
    table = Table("replica", "address", "state", "in flight", "requests")
    with _told() as module:
        for each in module.servers(router_directory):
            table.add_row(each.name, each.address, each.status.lower(), str(each.in_flight), str(each.total))
    Console().print(table)


@contextmanager
def _told() -> Iterator[Any]:
    """The server's part of it; what goes wrong there in one line."""
    try:
        module = importlib.import_module("internvideo_server.launch.router")
        launch = importlib.import_module("internvideo_server.launch")
    except ModuleNotFoundError as error:
        raise failed(f"{error.name} is missing: pip install '.[server]' in a clone of the project") from error
    try:
        yield module
    except launch.LaunchError as error:
        raise failed(str(error)) from error
