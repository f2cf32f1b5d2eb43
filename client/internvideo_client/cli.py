"""``internvideo``: the command line. What the other commands need of the server's part is imported when they run."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvideo_client import commands
from internvideo_client.commands import errors, failed, show
from internvideo_client.errors import ApiError
from internvideo_server import __version__
from internvideo_server.errors import ServingError
from internvideo_server.project import project_home
from internvideo_server.settings import ServeSettings, options_from

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PROJECT = Path(__file__).resolve().parents[2]
_DEMO = ("checkpoint", "engine", "device", "vit_device", "dtype", "num_frames", "max_frames", "run_directory", "ready_timeout")


@app.command()
@options_from(ServeSettings)
def serve(
    settings: ServeSettings,
    detach: Annotated[bool, typer.Option("--detach", help="return when it serves; `status` and `stop` find it again")] = False,
) -> None:
    """Start Triton and the OpenAI API; Ctrl-C stops both."""
    launch = _launch()
    if not detach:
        raise typer.Exit(launch.serve(settings))
    try:
        raise typer.Exit(launch.detach(settings))
    except launch.LaunchError as error:
        raise failed(str(error)) from error


@app.command()
def status(
    api_key: commands.ApiKey = None, as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: runs")] = False
) -> None:
    """Show the servers of this user that run here; exit code 1 where there are none, or one does not serve."""
    runs = _launch().statuses(api_key)
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(run) for run in runs]}, ensure_ascii=False))
    else:
        Console(highlight=False).print(commands.table_of(runs) if runs else "no server runs here")
    raise typer.Exit(0 if runs and all(run.status == "serving" for run in runs) else 1)


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="as `status` shows it; may be left out where only one runs")] = None,
    now: Annotated[bool, typer.Option("--now", help="do not let requests under way end")] = False,
) -> None:
    """End a server, after the requests that it has under way."""
    launch = _launch()
    try:
        run = launch.chosen(name)
        errors.print(f"[dim]stopping {escape(run.name)} (process {run.pid})[/]", soft_wrap=True)
        with commands.Waiting("requests under way"):
            launch.end(run, now=now)
    except launch.LaunchError as error:
        raise failed(str(error)) from error


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def tritonserver(context: typer.Context) -> None:
    """Run a plain tritonserver in the environment that its Python models need: `internvideo tritonserver -- ARGS`."""
    launch = _launch()
    try:
        server = launch.find_tritonserver()
        os.execve(server.binary, [str(server.binary), *context.args], server.environment(os.environ))  # noqa: S606
    except (launch.LaunchError, OSError) as error:
        raise failed(str(error)) from error


@app.command()
@options_from(ServeSettings)
def doctor(
    settings: ServeSettings,
    url: Annotated[str | None, typer.Option(help="look at the running server there instead")] = None,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="also read every weight, start all of it on free ports and ask about a sample video"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: ok, checks")] = False,
) -> None:
    """Check this host and what is to be served on it, before `serve` with the same options; exit code 0 when nothing failed."""
    module = _server_part("doctor")
    if url is not None and self_test:
        raise failed("--self-test starts a server of its own: leave out --url")
    if self_test:
        report = module.self_test(settings, lambda line: errors.print(f"[dim]{escape(line)}[/]", soft_wrap=True))
    else:
        key = settings.api_key[0].get_secret_value() if settings.api_key else os.environ.get("INTERNVIDEO_API_KEY")
        report = module.run(settings) if url is None else module.check_server(url, key)
    if as_json:
        typer.echo(json.dumps(report.to_document(), ensure_ascii=False))
    else:
        Console(highlight=False).print(report.to_markup(), soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


for command in (commands.chat, commands.frames, commands.bench, commands.batch):
    app.command()(command)


@app.command()
@options_from(ServeSettings, _DEMO, **dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0))
def demo(
    settings: ServeSettings,
    video: Annotated[Path | None, typer.Argument(help="a local video (default: one that the demo model understands)")] = None,
    question: Annotated[str, typer.Argument(help="what to ask about it")] = "Describe the video.",
    max_tokens: Annotated[int, typer.Option(help="longest answer")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(help="picture of the frames (default: NAME.frames.png here, where the terminal cannot show them)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: answer, usage, timings")] = False,
) -> None:
    """Start everything on free ports, show a video's frames, ask about it, show the answer and the timings, stop."""
    launch = _launch()
    video = video or project_home() / "examples" / "demo.mp4"
    run_demo = importlib.import_module("internvideo_client._demo").run_demo
    try:
        _show_frames(video, out, quiet=as_json)  # and so it is known to be a video before anything is started
        report = (lambda line: None) if as_json else (lambda line: errors.print(f"[dim]{escape(line)}[/]", soft_wrap=True))
        result = run_demo(video, question, settings, max_tokens, report, (lambda text: None) if as_json else show)
    except (ApiError, launch.LaunchError) as error:
        raise failed(str(error)) from error
    except ServingError as error:
        raise failed(f"{video}: {error.message}") from error
    except OSError as error:
        raise failed(f"{error.filename or video}: {error.strerror}") from error
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    show("\n")
    if (right := _right_answer(video, question)) is not None:
        show(f"(right answer: {right})\n")
    show("\n")
    Console().print(_table(result))


app.add_typer(commands.router, name="router")

cache = typer.Typer(no_args_is_help=True, help="Exported engines that `serve` keeps.")
app.add_typer(cache, name="cache")


@cache.command("list")
def list_cache() -> None:
    """Show what is kept: size, checkpoint, dtype and last use."""
    table = Table("checkpoint", "dtype", "size", "last used", "")
    for engine in _launch().cached_engines():
        used = datetime.fromtimestamp(engine.used).strftime("%Y-%m-%d %H:%M") if engine.used else "never"
        table.add_row(
            engine.fingerprint, engine.dtype, f"{engine.size / 2**30:.2f} GiB", used, "" if engine.current else "old format"
        )
    Console().print(table)


@cache.command("clear")
def clear_cache(
    everything: Annotated[bool, typer.Option("--all", help="also what is current, unless a server uses it")] = False,
) -> None:
    """Remove exports of older formats."""
    for engine in _launch().clear_engines(everything=everything):
        typer.echo(f"removed {engine.path}")


@app.callback()
def internvideo(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="show the version and exit")] = False,
) -> None:
    """InternVideo2.5-Chat-8B on Triton."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the ``internvideo`` command."""
    app()


def _launch() -> Any:
    return _server_part("launch")


def _server_part(name: str) -> Any:
    """A package of the server, imported where it is needed: ``chat`` works where only the client is installed."""
    try:
        return importlib.import_module(f"internvideo_server.{name}")
    except ModuleNotFoundError as error:
        raise failed(
            f"{error.name} is missing: install the server's part: in a clone of the project, pip install '.[server]'"
        ) from error


def _show_frames(video: Path, out: Path | None, *, quiet: bool) -> None:
    """The frames of a video, in the terminal or as a file.

    Args:
        video: A local one.
        out: The file; None: only where the terminal cannot show them.
        quiet: Only the file that was asked for.

    Raises:
        OSError: The video cannot be read, or the file not be written.
        ServingError: It is not a video that the server could read.
    """
    sheet = importlib.import_module("internvideo_client._contact_sheet")
    frames = sheet.sample(video)
    if out is None and (quiet or sheet.show(frames, Console())):
        return
    target = out or Path(f"{video.stem}.frames.png")
    try:
        sheet.save(frames, target)
    except OSError:
        if out is not None:
            raise
        return  # a folder that is not ours to write, and nobody asked for the file
    except ValueError as error:
        raise failed(f"--out {target}: {error}") from error
    if not quiet:
        errors.print(f"[dim]frames of the video: {escape(str(target))}[/]", soft_wrap=True)


def _right_answer(video: Path, question: str) -> str | None:
    """What a file of questions beside the video says, if there is one and the question is in it."""
    try:
        answer = json.loads(video.with_suffix(".json").read_text(encoding="utf-8")).get(question)
    except (OSError, ValueError, AttributeError):
        return None
    return answer if isinstance(answer, str) else None


def _table(result: dict[str, Any]) -> Table:
    timings, usage = result["timings"], result["usage"]
    table = Table("stage", "time", title=f"{usage['prompt_tokens']} prompt tokens, {usage['completion_tokens']} generated")
    names = {
        "start_up_s": "start of the server",
        "fetch_s": "fetching and hashing the video",
        "decode_s": "decoding, sampling, resizing",
        "vision_s": "vision tower and merging",
        "first_token_s": "question to first token",
        "total_s": "question to last token",
    }
    for key in filter(timings.__contains__, names):
        table.add_row(names[key], f"{timings[key]:.2f} s")
    if timings["tokens_per_s"] is not None:
        table.add_row("generation", f"{timings['tokens_per_s']:.1f} tokens/s")
    return table


if __name__ == "__main__":
    main()
