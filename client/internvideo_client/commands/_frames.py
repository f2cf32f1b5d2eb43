"""``internvideo frames``: the contact sheet of what the model sees."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from PIL import Image, ImageDraw
from rich.markup import escape

from internvideo_client.http_chat import Server, error_of, media_part, unreachable
from internvideo_client.request_body import JsonBody

from ._shared import DEFAULT_URL, ApiKey, Url, Waiting, errors, failed, reported

_COLUMNS = 8
_LABEL = 14  # pixels below a frame, for its time


def frames(
    video: Annotated[str, typer.Argument(help="a local file, which is sent along, or a URL")],
    out: Annotated[
        Path | None, typer.Option(help="PNG or JPEG to write (default: NAME.frames.png in the current folder)")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="frames (default: as the server is set)")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second, instead of --num-frames")] = None,
    start: Annotated[float | None, typer.Option(help="seconds: where to begin")] = None,
    end: Annotated[float | None, typer.Option(help="seconds: where to end")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Save the frames of a video as the model would see them, with their times, as one picture."""
    sampling = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
    target = out or Path(f"{Path(video.partition('?')[0]).stem or 'video'}.frames.png")
    with reported():
        part = media_part(video, {name: value for name, value in sampling.items() if value is not None})
        with Waiting("decoding") as waiting:
            sampled = sampled_frames(Server(url, api_key, on_upload=waiting.sent), part)
        try:
            contact_sheet(sampled).save(target)
        except ValueError as error:  # a name that ends as no picture's does
            raise failed(f"--out {target}: {error}") from error
    errors.print(f"[dim]{escape(str(target))}[/]", soft_wrap=True)


def sampled_frames(server: Server, part: dict[str, Any]) -> list[tuple[float, Image.Image]]:
    """The frames that the server samples from a medium, each with its time in seconds.

    Raises:
        ApiError: The server refused, or nothing answers.
        OSError: The local file cannot be read.
    """
    endpoint, body = server.endpoint("video/frames"), JsonBody(part)
    try:
        with httpx2.Client(**server.options) as client:
            response = client.post(endpoint, content=body.pieces(server.on_upload), headers=body.headers)
    except httpx2.TransportError as error:
        raise unreachable(endpoint, error) from error
    if response.status_code != httpx2.codes.OK:
        raise error_of(response.content, response.status_code)
    return [(frame["time"], _picture(frame["image"])) for frame in response.json()["frames"]]


def contact_sheet(sampled: list[tuple[float, Image.Image]]) -> Image.Image:
    """All frames in rows, the time below each."""
    width, height = sampled[0][1].size
    columns = min(_COLUMNS, len(sampled))
    rows = -(-len(sampled) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (time, picture) in enumerate(sampled):
        row, column = divmod(number, columns)
        place = column * width, row * (height + _LABEL)
        sheet.paste(picture, place)
        draw.text((place[0] + 2, place[1] + height + 1), f"{time:.2f} s", fill="black")
    return sheet


def _picture(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))).convert("RGB")
