"""Damaged media of every container for the decoder: ``python -m tests.security.fuzzing --minutes 30`` (`make fuzz`).

The answer may be frames or a refusal of the medium. A decoder that ends, or that answers something else, is a finding.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import av
import numpy as np
import typer
from PIL import Image

from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.media import Media, MediaPolicy
from internvideo_server.preprocessing.video import DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling

DATA = Path(__file__).resolve().parent.parent / "data"
_SMALL = 300_000  # bytes of a seed
_MEDIUM_S = 20.0  # for one mutant
#: Container (its name in FFmpeg) -> encoder, and options of the container.
_CONTAINERS: dict[str, tuple[str, dict[str, str]]] = {
    "mp4": ("libx264", {}),
    "mov": ("mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
    "matroska": ("libx264", {}),
    "webm": ("libvpx", {}),
    "avi": ("mpeg4", {}),
    "flv": ("flv", {}),
    "mpegts": ("mpeg2video", {}),
    "mpeg": ("mpeg1video", {}),
    "asf": ("mpeg4", {}),
    "ogg": ("libtheora", {}),
    "mxf": ("mpeg2video", {}),
    "ivf": ("libvpx-vp9", {}),
    "gif": ("gif", {}),
    "h264": ("libx264", {}),
    "3gp": ("mpeg4", {}),
}
_PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\x7f"]


@dataclass(frozen=True)
class Seed:
    """A medium that can be read."""

    name: str
    kind: Literal["video", "image"]
    content: bytes


@dataclass
class Findings:
    """What came of it.

    Attributes:
        answers: How many mutants were decoded ("frames") or refused, by the beginning of the refusal.
        failures: Name of a mutant -> what was wrong with its answer.
    """

    answers: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


def seeds() -> list[Seed]:
    """Small ones of every container and picture format that can be written here, and those of the tests' data."""
    found = [Seed(f"made.{name}", "video", content) for name in _CONTAINERS if (content := _video(name))]
    for form in _PICTURES:
        out = io.BytesIO()
        Image.fromarray(_picture(0)).save(out, form)
        found.append(Seed(f"made.{form.lower()}", "image", out.getvalue()))
    for form in ("PNG", "WEBP"):
        out = io.BytesIO()
        pictures = [Image.fromarray(_picture(i)) for i in range(6)]
        pictures[0].save(out, form, save_all=True, append_images=pictures[1:], duration=100)
        found.append(Seed(f"animated.{form.lower()}", "video", out.getvalue()))
    small = [path for path in sorted(DATA.iterdir()) if path.is_file() and path.suffix != ".py"]
    found += [Seed(path.name, "video", path.read_bytes()) for path in small if path.stat().st_size < _SMALL]
    return found


def mutant(seed: Seed, chance: random.Random) -> bytes:
    """A damaged copy."""
    content = bytearray(seed.content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        # Headers lie at the beginning or the end.
        place = int(len(content) * chance.choice((chance.random(), chance.random() ** 4, 1 - chance.random() ** 4)))
        size = 1 << chance.randrange(12)
        match chance.randrange(7):
            case 0:
                content[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                content[place : place + 4] = chance.choice(_EXTREMES)
            case 2:
                content[place : place + size] = chance.randbytes(size)
            case 3:
                del content[place : place + size]
            case 4:
                content[place:place] = content[place : place + size] or b"\0"
            case 5:
                del content[max(place, 1) :]
            case 6:
                other = chance.randrange(len(content) or 1)
                content[place : place + size] = content[other : other + size]
        content = content or bytearray(b"\0")
    return bytes(content)


def fuzz(seconds: float, start: int, folder: Path, workers: int = 2) -> Findings:
    """Try mutants for so long.

    Args:
        seconds: Of trying.
        start: Number of the first mutant: the same number makes the same one.
        folder: Where mutants are kept that were not answered as they should.
        workers: Decoder processes.
    """
    found, known, lock = Findings(), seeds(), threading.Lock()
    numbers = iter(range(start, 1 << 62))
    limits = DecodeLimits(timeout_s=_MEDIUM_S, max_cost=2.0)
    with FrameDecoder(workers, limits) as decoder:
        ends = time.monotonic() + seconds

        def work() -> None:
            while time.monotonic() < ends:
                with lock:
                    number = next(numbers)
                chance = random.Random(number)
                seed = known[number % len(known)]
                content = mutant(seed, chance)
                answer, failure = _answer(decoder, seed.kind, content, chance)
                with lock:
                    found.answers[answer] += 1
                    if failure:
                        name = f"{number}_{seed.name}"
                        found.failures[name] = failure
                        folder.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_bytes(content)

        with ThreadPoolExecutor(workers) as threads:
            for done in [threads.submit(work) for _ in range(workers)]:
                done.result()
    return found


def _answer(decoder: FrameDecoder, kind: Literal["video", "image"], content: bytes, chance: random.Random) -> tuple[str, str]:
    """In few words, and what was wrong with it."""
    sampling = FrameSampling(num_frames=chance.choice((4, 8, 32)), start=chance.choice((None, None, 0.5)))
    if chance.random() < 0.1:  # what one says it is, and what it is
        kind = "image" if kind == "video" else "video"
    try:
        with Media.from_chunks([content], MediaPolicy(), None) as medium, FrameBuffer() as buffer:
            decoder.decode(medium.fd, DecodeRequest(kind, sampling, "part"), buffer)
    except ServingError as error:
        refused = error.code is ErrorCode.INVALID_ARGUMENT
        return " ".join(error.message.split()[:5]), "" if refused else f"{error.code}: {error.message}"
    return "frames", ""


def _video(container: str) -> bytes:
    """Twelve frames; nothing where this FFmpeg cannot write it."""
    encoder, options = _CONTAINERS[container]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format=container, options=options) as file:
            stream = file.add_stream(encoder, rate=Fraction(25))
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "rgb8" if encoder == "gif" else "yuv420p"
            for number in range(12):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(_picture(number), format="rgb24")))
            file.mux(stream.encode())
    except (av.FFmpegError, ValueError):
        return b""
    return out.getvalue()


def _picture(number: int) -> np.ndarray:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[8:24, 4 * number : 4 * number + 16] = 255, 128, 10 * number
    return picture


def lines(found: Findings) -> Iterator[str]:
    """A report for people."""
    yield f"{found.answers.total()} mutants, {found.answers['frames']} of them still gave frames"
    for answer, count in found.answers.most_common(20):
        yield f"{count:8} {answer}"
    for name, failure in found.failures.items():
        yield f"FAILED {name}: {failure}"


def main(
    minutes: Annotated[float, typer.Option(help="how long")] = 1.0,
    start: Annotated[int | None, typer.Option(help="number of the first mutant; none: by the clock")] = None,
    folder: Annotated[Path, typer.Option(help="where mutants with a wrong answer are kept")] = Path("fuzz-findings"),
) -> None:
    """Fuzz the decoder."""
    found = fuzz(60 * minutes, int(time.time()) << 20 if start is None else start, folder)
    for line in lines(found):
        typer.echo(line)
    raise typer.Exit(1 if found.failures else 0)


if __name__ == "__main__":
    typer.run(main)
