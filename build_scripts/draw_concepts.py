"""The pictures of docs/concepts.md, drawn from the demo video by the demo model: ``python -m build_scripts.draw_concepts``.

What merging keeps is the real code's choice, taken from the tokens that the served tower makes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.preprocessing.media import Media
from internvideo_server.preprocessing.video import DecodeRequest, FrameDecoder, FrameSampling
from internvideo_server.vit.vision import VisionModel
from internvideo_server.vit.vision.merging import average, choose, metric_of
from internvideo_server.vit.vision.tower import pixel_shuffle

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
_SHOWN = 224  # pixels of a frame in a picture
_GAP = 6

Pixels = npt.NDArray[np.uint8]  # [T, side, side, 3]


def sampled_frames(video: Path, count: int) -> Pixels:
    """The frames that ``preprocessing`` would hand to ``vit``: uint8 [count, 448, 448, 3]."""
    with Media(os.open(video, os.O_RDONLY)) as medium, FrameDecoder(1) as decoder, FrameBuffer() as buffer:
        decoder.decode(medium.fd, DecodeRequest(sampling=FrameSampling(num_frames=count)), buffer)
        return np.stack([frame.transpose(1, 2, 0) for frame in buffer.frames()])


def merged_places(model: VisionModel, frames: Pixels) -> npt.NDArray[np.int64]:
    """Which of the 64 merged tokens each token of a group of 4 frames becomes a part of: [4, 16, 16]."""
    config = model.config
    tokens = model.tokens(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()))
    group = pixel_shuffle(tokens, config.patches_per_side).reshape(1, -1, config.shuffled_size)
    choices = choose(metric_of(group, config.merge_heads), FRAMES_PER_GROUP * TOKENS_PER_FRAME)
    # Averaging the identity tells where each token went.
    shares = average(torch.eye(group.shape[1])[None], choices, FRAMES_PER_GROUP * TOKENS_PER_FRAME)[0]
    side = config.patches_per_side // 2
    return shares.argmax(0).reshape(FRAMES_PER_GROUP, side, side).numpy()


def row(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    drawn = Image.new("RGB", (len(pictures) * (width + _GAP) - _GAP, height), "white")
    for number, picture in enumerate(pictures):
        drawn.paste(picture, (number * (width + _GAP), 0))
    return drawn


def column(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    drawn = Image.new("RGB", (rows[0].width, sum(each.height + _GAP for each in rows) - _GAP), "white")
    top = 0
    for each in rows:
        drawn.paste(each, (0, top))
        top += each.height + _GAP
    return drawn


def shown(frame: Pixels) -> Image.Image:
    """A frame as a picture."""
    return Image.fromarray(frame).resize((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)


def gridded(frame: Pixels, lines: int) -> Image.Image:
    """A frame with a grid over it."""
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    for at in np.linspace(0, frame.shape[0], lines + 1)[1:-1]:
        draw.line([(at, 0), (at, frame.shape[0])], fill="white")
        draw.line([(0, at), (frame.shape[0], at)], fill="white")
    return picture


def painted(frames: Pixels, places: npt.NDArray[np.int64]) -> list[Image.Image]:
    """Each frame with every merged token in the mean colour of all that it stands for, and lines between the tokens."""
    side = places.shape[1]
    cell = frames.shape[1] // side
    small = frames.reshape(len(frames), side, cell, side, cell, 3).mean((2, 4))  # [4, 16, 16, 3]
    colours = np.stack([small[places == place].mean(0) for place in range(int(places.max()) + 1)])
    pictures = []
    for each in places:
        picture = Image.fromarray(colours[each].astype(np.uint8)).resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST)
        draw, step = ImageDraw.Draw(picture), _SHOWN // side
        for down, across in np.ndindex(side, side):
            x, y = across * step, down * step
            if across and each[down, across] != each[down, across - 1]:
                draw.line([(x, y), (x, y + step - 1)], fill="black")
            if down and each[down, across] != each[down - 1, across]:
                draw.line([(x, y), (x + step - 1, y)], fill="black")
        pictures.append(picture)
    return pictures


def main() -> None:
    """Draw all of them."""
    frames = sampled_frames(ROOT / "examples" / "demo.mp4", 8)
    column([row([shown(frame) for frame in frames[at : at + 4]]) for at in (0, 4)]).save(PICTURES / "frames.png", optimize=True)
    model = VisionModel.from_checkpoint(ROOT / "build_scripts" / "demo_model", "cpu", torch.float32)
    per_side = model.config.patches_per_side
    row([gridded(frames[0], per_side), gridded(frames[0], per_side // 2)]).save(PICTURES / "patches.png", optimize=True)
    group = frames[:FRAMES_PER_GROUP]
    places = merged_places(model, group)
    column([row([shown(frame) for frame in group]), row(painted(group, places))]).save(PICTURES / "merging.png", optimize=True)


if __name__ == "__main__":
    main()
