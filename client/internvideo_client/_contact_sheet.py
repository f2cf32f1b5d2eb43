"""A contact sheet of the frames that the model sees: in colour in a terminal, or as an image file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.media import Media
from internvideo_server.preprocessing.video import DecodeRequest, FrameDecoder, FrameSampling

_FRAMES, _COLUMNS = 8, 4
_GAP = 1  # characters between two frames
_WIDEST = 28  # characters of a frame in a terminal
_SIDE = 224  # pixels of a frame in a file

Sheet = npt.NDArray[np.uint8]  # [height, width, 3] RGB


def sample(video: Path) -> list[Image.Image]:
    """Eight frames as the server samples and resizes them.

    Raises:
        OSError: There is no such file.
        ServingError: It cannot be read as a video.
    """
    with Media(os.open(video, os.O_RDONLY)) as medium, FrameDecoder(1) as decoder, FrameBuffer() as buffer:
        decoder.decode(medium.fd, DecodeRequest(sampling=FrameSampling(num_frames=_FRAMES)), buffer)
        return [Image.fromarray(frame.transpose(1, 2, 0)) for frame in buffer.frames()]


def show(frames: list[Image.Image], console: Console) -> bool:
    """Print the frames, two pixels a character; False if this is not a terminal that shows all colours."""
    if not console.is_terminal or console.color_system != "truecolor":
        return False
    side = min(_WIDEST, (console.width - _GAP * (_COLUMNS - 1)) // _COLUMNS) // 2 * 2
    if side < 8:
        return False
    for first in range(0, len(frames), _COLUMNS):
        pictures = [np.asarray(frame.resize((side, side), Image.Resampling.BOX)) for frame in frames[first : first + _COLUMNS]]
        for row in range(0, side, 2):
            line = Text(" " * _GAP).join(_line(picture[row], picture[row + 1]) for picture in pictures)
            console.print(line, no_wrap=True, overflow="crop")
        console.print()
    return True


def save(frames: list[Image.Image], path: Path) -> None:
    """Write the frames as one picture.

    Raises:
        OSError: It cannot be written.
        ValueError: Its name ends as no picture's does.
    """
    rows = -(-len(frames) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * _SIDE))
    for number, frame in enumerate(frames):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(frame.resize((_SIDE, _SIDE)), (column * _SIDE, row * _SIDE))
    sheet.save(path)


def _line(upper: Sheet, lower: Sheet) -> Text:
    """One line of a frame: the upper half of each character in one colour, the lower in another."""
    text = Text()
    for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
        text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
    return text
