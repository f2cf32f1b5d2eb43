"""Images as a page shows them, animations, and videos that come as single pictures."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvideo_server.errors import ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.media import MediaPolicy, fetch
from internvideo_server.preprocessing.video import DecodedMedia, DecodeRequest, FrameDecoder, FrameSampling
from tests.video_decoding import V0, decode, refusal

GREYS = (0, 40, 80, 120, 160, 200, 240)


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(level: int, kind: str = "PNG") -> bytes:
    return saved(Image.new("RGB", (32, 32), (level,) * 3), kind)


def fetched(decoder: FrameDecoder, url: str, num_frames: int | None = None) -> tuple[DecodedMedia, list[int]]:
    """What was decoded, and the grey level of each frame."""
    request = DecodeRequest(sampling=FrameSampling(num_frames=num_frames))
    with fetch(url, MediaPolicy()) as medium, FrameBuffer() as buffer:
        decoded = decoder.decode(medium.fd, request, buffer)
        return decoded, [round(float(frame.mean())) for frame in buffer.frames()]


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_stands_in_front_of_white(kind: str, mode: str, decoder: FrameDecoder) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    _, frames = decode(decoder, saved(image.convert(mode), kind), "image")
    assert frames[0, :, :, :150].max() < 30
    assert frames[0, :, :, -150:].min() > 225


def test_sixteen_bits_of_grey_are_scaled(decoder: FrameDecoder) -> None:
    deep = np.array([[0, 65535], [32768, 16384]], np.uint16).repeat(50, 0).repeat(50, 1)
    _, frames = decode(decoder, saved(Image.fromarray(deep)), "image")
    corners = [int(frames[0, 0, y, x]) for y, x in ((5, 5), (5, 440), (440, 5), (440, 440))]
    assert corners == [0, 255, 128, 64]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_a_video_or_its_first_frame(kind: str, decoder: FrameDecoder) -> None:
    first, *others = (Image.new("RGB", (32, 32), (level,) * 3) for level in GREYS)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(first, kind, save_all=True, append_images=others, duration=[100] * 6 + [400], **options)
    decoded, frames = decode(decoder, content, num_frames=4)
    assert decoded.total_frames == 7
    assert [frame.mean() for frame in frames] == [GREYS[index] for index in decoded.indices]
    assert decoded.seconds == pytest.approx([index / 10 for index in decoded.indices])
    assert decode(decoder, content, "image")[1].max() == GREYS[0]
    assert len(decode(decoder, content, start=0.55, num_frames=4)[1]) == 4
    assert "image_url" in refusal(decoder, plain(9, kind)).message


def test_the_picture_for_programs_that_know_no_animations_is_none_of_its_frames(decoder: FrameDecoder) -> None:
    other, *frames = (Image.new("RGB", (32, 32), (level,) * 3) for level in GREYS)
    content = saved(other, "PNG", save_all=True, append_images=frames, duration=100, default_image=True)
    decoded, pixels = decode(decoder, content, num_frames=4)
    assert decoded.total_frames == 6
    assert [frame.mean() for frame in pixels] == [GREYS[1:][index] for index in decoded.indices]
    assert decode(decoder, content, "image")[1].max() == GREYS[0]


@pytest.mark.parametrize("mime", ["video/jpeg", "image/png", "image/jpeg"])
def test_a_data_url_of_several_pictures_is_a_video_of_them(mime: str, decoder: FrameDecoder) -> None:
    kind = mime.rpartition("/")[2].upper()
    url = f"data:{mime};base64," + ",".join(b64(plain(level, kind)) for level in GREYS)
    decoded, levels = fetched(decoder, url)
    assert decoded.indices == [0, 1, 2, 3, 4, 5, 6, 6]
    assert levels == [*GREYS, GREYS[-1]]
    assert decoded.seconds == []
    assert fetched(decoder, url, num_frames=4)[0].indices == [0, 2, 3, 4]
    assert fetched(decoder, "data:video/jpeg;base64," + b64(plain(80)))[1] == [80] * 4


def test_a_list_with_something_else_in_it_is_refused(decoder: FrameDecoder) -> None:
    url = f"data:video/jpeg;base64,{b64(plain(0))},{b64(b'just text')}"
    with pytest.raises(ServingError, match="frame 1 of the list"):
        fetched(decoder, url)


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("data:video/webm;codecs=vp8,opus;base64,", lambda text: text),
        ("data:;base64,", lambda text: "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))),
        ("DATA:video/mp4;BASE64,", lambda text: text.rstrip("=")),
        ("data:video/mp4; base64,", lambda text: text),
        ("data:video/mp4;base64,", lambda text: text + ","),
        ("data:video/mp4;base64,", lambda text: text.replace("+", "-").replace("/", "_")),
        ("data:video/mp4;base64,", lambda text: text.replace("+", "%2B").replace("=", "%3D")),
    ],
)
def test_base64_as_it_is_written_elsewhere(head: str, change: object, tmp_path: Path) -> None:
    for content in (V0.read_bytes(), V0.read_bytes() + b"x", V0.read_bytes() + b"xy"):
        with fetch(head + change(b64(content)), MediaPolicy()) as medium:  # type: ignore[operator]
            assert medium.size == len(content)


@pytest.mark.parametrize("content", ["AB=CDEF=", "A===", "AAAAA", "AA!A", "ÄAAA"])
def test_broken_base64_is_refused(content: str) -> None:
    with pytest.raises(ServingError, match="base64"):
        fetch("data:video/mp4;base64," + content, MediaPolicy())
