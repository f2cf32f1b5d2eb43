"""``internvideo``: serve, doctor, chat, ui, demo."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._errors import ApiError
from ._http_chat import media_part, stream_answer

app = typer.Typer(help="InternVideo2.5-Chat-8B on Triton.", no_args_is_help=True, pretty_exceptions_enable=False)
_errors = Console(stderr=True, highlight=False)

_PROJECT = Path(__file__).resolve().parents[2]


@app.command()
def serve(
    checkpoint: Annotated[Path | None, typer.Option(help="model directory; none: the small demo model")] = None,
    engine: Annotated[Path | None, typer.Option(help="engine directory; none: exported once and cached")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    vit_device: Annotated[str | None, typer.Option(help="of the vision tower; none: where the engine runs")] = None,
    vit_quantization: Annotated[str, typer.Option(help="of the vision tower: none, or fp8 (faster, less exact)")] = "none",
    kv_cache_fraction: Annotated[
        float | None, typer.Option(help="share of the free GPU memory for a TensorRT-LLM engine's KV cache")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    num_frames: Annotated[int, typer.Option(help="frames per video where the request does not say")] = 80,
    max_frames: Annotated[int, typer.Option(help="the most frames a request may ask for")] = 128,
    allowed_local_media_path: Annotated[
        list[Path] | None, typer.Option(help="folder that file:// URLs may point into (repeatable)")
    ] = None,
    host: Annotated[str, typer.Option(help="address of the OpenAI API")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the OpenAI API; 0 is a free one, here and below")] = 9997,
    ui_port: Annotated[int | None, typer.Option(help="serve the web page too, on 127.0.0.1; none: no page")] = None,
    triton_host: Annotated[str, typer.Option(help="address of Triton; its ports know no authentication")] = "127.0.0.1",
    triton_http_port: Annotated[int, typer.Option(help="Triton's HTTP port")] = 8000,
    triton_grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port")] = 8001,
    triton_metrics_port: Annotated[int, typer.Option(help="Triton's metrics port")] = 8002,
    decode_workers: Annotated[int | None, typer.Option(help="processes that decode video; none: up to 4")] = None,
    max_queue_size: Annotated[int, typer.Option(help="requests that may wait for preprocessing")] = 64,
    video_reader: Annotated[str, typer.Option(help="auto, pyav, nvdec (a GPU decodes), or decord (the original's)")] = "auto",
    frame_cache_mb: Annotated[int, typer.Option(help="MiB of decoded frames to keep (0: none)")] = 1024,
    embedding_cache_mb: Annotated[int, typer.Option(help="MiB of embeddings to keep, on the tower's device (0: none)")] = 1024,
    cuda_region_count: Annotated[int, typer.Option(help="prompt tables that vit makes and hands over at once")] = 8,
    cuda_region_mb: Annotated[int | None, typer.Option(help="MiB of each; none: the engine's largest table")] = None,
    request_timeout: Annotated[float, typer.Option(help="seconds that a whole request may take")] = 300,
    run_directory: Annotated[Path | None, typer.Option(help="keep the rendered repository and the logs here")] = None,
    ready_timeout: Annotated[float, typer.Option(min=1, help="seconds that loading may take")] = 600,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the logs of Triton and the adapter")] = False,
) -> None:
    """Start Triton and the OpenAI API; Ctrl-C stops both."""
    optional = {} if decode_workers is None else {"decode_workers": decode_workers}
    launch = _launch()
    try:
        options = launch.ServeOptions(
            checkpoint=checkpoint,
            engine=engine,
            device=device,
            vit_device=vit_device,
            vit_quantization=vit_quantization,
            kv_cache_fraction=kv_cache_fraction,
            dtype=dtype,
            num_frames=num_frames,
            max_frames=max_frames,
            allowed_local_media_path=tuple(allowed_local_media_path or ()),
            host=host,
            port=port,
            ui_port=ui_port,
            triton_host=triton_host,
            triton_http_port=triton_http_port,
            triton_grpc_port=triton_grpc_port,
            triton_metrics_port=triton_metrics_port,
            max_queue_size=max_queue_size,
            video_reader=video_reader,
            frame_cache_mb=frame_cache_mb,
            embedding_cache_mb=embedding_cache_mb,
            cuda_region_count=cuda_region_count,
            cuda_region_mb=cuda_region_mb,
            request_timeout_s=request_timeout,
            run_directory=run_directory,
            ready_timeout_s=ready_timeout,
            verbose=verbose,
            **optional,
        )
    except launch.LaunchError as error:
        raise _failed(str(error)) from error
    raise typer.Exit(launch.serve(options))


@app.command()
def doctor(
    checkpoint: Annotated[Path | None, typer.Option(help="model directory to check")] = None,
    engine: Annotated[Path | None, typer.Option(help="engine directory to check")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    max_frames: Annotated[int, typer.Option(help="the most frames a request may ask for")] = 128,
    allowed_local_media_path: Annotated[
        list[Path] | None, typer.Option(help="folder that file:// URLs may point into (repeatable)")
    ] = None,
    host: Annotated[str, typer.Option(help="address of the OpenAI API")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the OpenAI API")] = 9997,
    triton_host: Annotated[str, typer.Option(help="address of Triton")] = "127.0.0.1",
    triton_http_port: Annotated[int, typer.Option(help="Triton's HTTP port")] = 8000,
    triton_grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port")] = 8001,
    triton_metrics_port: Annotated[int, typer.Option(help="Triton's metrics port")] = 8002,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: ok, checks")] = False,
) -> None:
    """Check this host, and what is to be served on it, before starting; exit code 0 when nothing failed."""
    module = _server_part("doctor")
    ports = {
        "--port": (host, port),
        "--triton-http-port": (triton_host, triton_http_port),
        "--triton-grpc-port": (triton_host, triton_grpc_port),
        "--triton-metrics-port": (triton_host, triton_metrics_port),
    }
    report = module.run(
        module.DoctorOptions(
            checkpoint=checkpoint,
            engine=engine,
            device=device,
            max_frames=max_frames,
            media_roots=tuple(allowed_local_media_path or ()),
            ports=ports,
        )
    )
    if as_json:
        typer.echo(json.dumps(report.to_document(), ensure_ascii=False))
    else:
        Console(highlight=False).print(report.to_markup(), soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def chat(
    video: Annotated[str, typer.Argument(help="video or image: a local file (it is sent along) or a URL")],
    question: Annotated[str, typer.Argument(help="what to ask about it")],
    url: Annotated[str, typer.Option(help="the server's OpenAI API")] = "http://127.0.0.1:9997",
    num_frames: Annotated[int | None, typer.Option(help="frames to look at, a multiple of 4")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second, instead of --num-frames")] = None,
    start: Annotated[float | None, typer.Option(help="seconds: where to begin")] = None,
    end: Annotated[float | None, typer.Option(help="seconds: where to end")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="longest answer")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 or none: always the likeliest token")] = None,
) -> None:
    """Ask a running server about a video; the answer is shown as it comes."""
    sampling = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    cut = False
    try:
        content = [media_part(video, _given(sampling)), {"type": "text", "text": question}]
        for part in stream_answer(url, content, _given(settings)):
            _show(part.text)
            cut = cut or part.finish_reason == "length"
    except ApiError as error:
        raise _failed(error.message) from error
    except OSError as error:
        raise _failed(f"cannot read {video}: {error.strerror}") from error
    _show("\n")
    if cut:
        _errors.print("[yellow](cut at the limit of tokens)[/]")


@app.command()
def ui(
    url: Annotated[str, typer.Option(help="the server's OpenAI API")] = "http://127.0.0.1:9997",
    host: Annotated[str, typer.Option(help="address of the page; it knows no authentication")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the page (0: a free one)")] = 7860,
) -> None:
    """Serve a web page for asking a running server; Ctrl-C stops it."""
    try:
        page = importlib.import_module("internvideo_client.ui")
    except ModuleNotFoundError as error:
        raise _failed(f"{error.name} is missing: install the page's part, `pip install 'internvideo-triton[ui]'`") from error
    questions = ("Which way does the green triangle move?", "绿色三角形往哪个方向移动？")
    video = _PROJECT / "examples" / "demo.mp4"
    examples = [(question, video) for question in questions] if video.exists() else []
    try:
        page.serve(url, host, port, examples, lambda address: typer.echo(f"page: {address} (Ctrl-C stops it)"))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # its own text repeats the address
        raise _failed(f"cannot listen on {host}:{port} ({reason}); choose another port, 0 takes a free one") from error


@app.command()
def demo(
    video: Annotated[Path, typer.Argument(help="a local video")] = _PROJECT / "examples" / "demo.mp4",
    question: Annotated[str, typer.Argument(help="what to ask about it")] = "Describe the video.",
    checkpoint: Annotated[Path | None, typer.Option(help="model directory; none: the small demo model")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    num_frames: Annotated[int, typer.Option(help="frames to look at, a multiple of 4")] = 80,
    max_tokens: Annotated[int, typer.Option(help="longest answer")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: answer, usage, timings")] = False,
) -> None:
    """Start everything on free ports, show a video's frames, ask about it, show the answer and the timings, stop."""
    launch = _launch()
    run_demo = importlib.import_module("internvideo_client._demo").run_demo
    try:
        if not as_json:
            _show_frames(video)
        free: dict[str, int] = dict.fromkeys(("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port"), 0)
        options = launch.ServeOptions(checkpoint=checkpoint, device=device, num_frames=num_frames, **free)
        report = (lambda line: None) if as_json else (lambda line: _errors.print(f"[dim]{escape(line)}[/]", soft_wrap=True))
        result = run_demo(video, question, options, max_tokens, report, (lambda text: None) if as_json else _show)
    except (ApiError, launch.LaunchError) as error:
        raise _failed(str(error)) from error
    except OSError as error:
        raise _failed(f"cannot read {video}: {error.strerror}") from error
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    _show("\n")
    if (right := _right_answer(video, question)) is not None:
        _show(f"(right answer: {right})\n")
    _show("\n")
    Console().print(_table(result))


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
        raise _failed(
            f"{error.name} is missing: install the server's part, `pip install 'internvideo-triton[server]'`"
        ) from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _show_frames(video: Path) -> None:
    """The frames of a video, in the terminal or as a file.

    Raises:
        OSError: The video cannot be read.
    """
    sheet = importlib.import_module("internvideo_client._contact_sheet")
    frames, console = sheet.sample(video), Console()
    if frames and not sheet.show(frames, console):
        _errors.print(f"[dim]frames of the video: {escape(str(sheet.save(frames, video)))}[/]", soft_wrap=True)


def _right_answer(video: Path, question: str) -> str | None:
    """What a file of questions beside the video says, if there is one and the question is in it."""
    try:
        answer = json.loads(video.with_suffix(".json").read_text(encoding="utf-8")).get(question)
    except (OSError, ValueError, AttributeError):
        return None
    return answer if isinstance(answer, str) else None


def _show(text: str) -> None:
    """Print a piece of the answer; a terminal gets no control characters, which a model may well generate."""
    if sys.stdout.isatty():
        text = "".join(char for char in text if char.isprintable() or char in "\n\t")
    typer.echo(text, nl=False)


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


def _failed(message: str) -> typer.Exit:
    _errors.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    return typer.Exit(1)


if __name__ == "__main__":
    main()
