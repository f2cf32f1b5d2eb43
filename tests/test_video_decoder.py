"""Decoding: the pixels, and the files that are refused."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from decord import VideoReader
from PIL import Image

import internvideo_server.preprocessing.video as video
from internvideo_server.errors import ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.video import DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling
from tests.data.make_videos import scene
from tests.video_decoding import DATA, V0, V1, decode, refusal


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def pillow(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((448, 448), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def fast_start(path: Path, folder: Path) -> bytes:
    """The same video with its index in front, so that a cut leaves it readable at first sight."""
    out = folder / "fast.mp4"
    options = {"movflags": "faststart"}
    with av.open(str(path)) as source, av.open(str(out), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return out.read_bytes()


def test_the_public_surface() -> None:
    assert set(video.__all__) == {
        "IMAGE_FRAMES",
        "DecodeLimits",
        "DecodeRequest",
        "DecodedMedia",
        "FrameDecoder",
        "FrameSampling",
        "frames_key",
        "sample_indices",
    }


@pytest.mark.parametrize("case", ["f8", "f16"])
def test_pixels_are_the_original_models(case: str, decoder: FrameDecoder, shared_dir: Path, golden: Path) -> None:
    reference = json.loads((golden / case / "reference.json").read_text())
    path = shared_dir / "data" / "red-panda.mp4"
    decoded, frames = decode(decoder, path, num_frames=int(case[1:]))
    assert decoded.indices == reference["video"]["frame_indices"]
    raw = VideoReader(str(path)).get_batch(decoded.indices).asnumpy()
    assert hashlib.sha256(raw.tobytes()).hexdigest() == reference["video"]["frames_rgb24_sha256"]
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    std = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
    pixels = (frames.astype(np.float32) / np.float32(255) - mean) / std
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == reference["pixel_values"]["sha256_f32"]


@pytest.mark.parametrize("name", ["v0.mp4", "v7.mp4", "portrait.mp4", "vp9.webm", "hevc.mp4"])
def test_frames_are_decords_resized_by_pillow(name: str, decoder: FrameDecoder) -> None:
    decoded, frames = decode(decoder, DATA / name, num_frames=32)
    raw = VideoReader(str(DATA / name)).get_batch(decoded.indices).asnumpy()
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, np.stack([pillow(frame) for frame in raw]))


def test_frames_show_the_scene_at_their_time(decoder: FrameDecoder) -> None:
    decoded, frames = decode(decoder, V0)
    assert (decoded.total_frames, decoded.fps) == (45, 15.0)
    for index, frame in zip(decoded.indices, frames, strict=True):
        drawn = pillow(scene(0, index / 15, 640, 360))
        assert np.abs(frame.astype(int) - drawn).mean() < 4


def test_options_choose_the_frames(decoder: FrameDecoder) -> None:
    decoded, _ = decode(decoder, V0, num_frames=4, start=2.0)
    assert decoded.indices == video.sample_indices(45, 15.0, 4, 2.0)
    with pytest.raises(ServingError) as caught:
        decode(decoder, V0, start=99.0)
    assert caught.value.param == "part.start"
    with pytest.raises(ServingError) as caught:
        decode(decoder, V0, num_frames=132)
    assert caught.value.param == "part.num_frames"


def test_without_options_the_servers_number_is_taken() -> None:
    with FrameDecoder(1, DecodeLimits(default_frames=12)) as decoder:
        assert decode(decoder, V0, num_frames=None)[1].shape == (12, 3, 448, 448)


def test_several_media_follow_each_other_in_one_buffer(decoder: FrameDecoder) -> None:
    single = [decode(decoder, path)[1] for path in (V0, V1)]
    with FrameBuffer() as buffer:
        assert buffer.frames().shape == (0, 3, 448, 448)
        for path in (V0, V1):
            with open(path, "rb") as file:
                decoder.decode(file.fileno(), DecodeRequest(sampling=FrameSampling(num_frames=8)), buffer)
        with open(__file__, "rb") as file, pytest.raises(ServingError):
            decoder.decode(file.fileno(), DecodeRequest(), buffer)
        frames = buffer.frames()
    assert np.array_equal(frames, np.concatenate(single))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_an_image_is_four_equal_frames(kind: str, mode: str, decoder: FrameDecoder) -> None:
    mode = "L" if (kind, mode) == ("JPEG", "P") else mode  # JPEG has no palette
    file = io.BytesIO()
    Image.fromarray(scene(1, 0.0, 320, 200)).convert(mode).save(file, kind)
    decoded, frames = decode(decoder, file.getvalue(), "image")
    expected = pillow(np.asarray(Image.open(file).convert("RGB")))
    assert decoded.frame_count == 4
    assert np.array_equal(frames, np.stack([expected] * 4))


def test_an_image_is_turned_upright(decoder: FrameDecoder) -> None:
    picture = Image.fromarray(scene(1, 0.0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    expected = pillow(np.asarray(picture.transpose(Image.Transpose.ROTATE_270)))
    assert np.array_equal(decode(decoder, file.getvalue(), "image")[1][0], expected)


@pytest.mark.parametrize(
    "content",
    [
        b"just text\n" * 100,
        b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 5000 RTP/AVP 96\r\n",
        b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>",
        b"\x1a\x45\xdf\xa3" + b"no doctype" * 50,
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"ID3\x04\x00\x00\x00\x00\x00\x00#EXTM3U\n",
        b"\x00",
    ],
)
def test_what_is_no_known_container_never_reaches_ffmpeg(content: bytes, decoder: FrameDecoder) -> None:
    assert "not a video of a known container" in refusal(decoder, content).message
    assert "not an image of a known format" in refusal(decoder, content, "image").message


def test_a_frame_that_came_among_others_and_not_alone_stands_in_for_none(decoder: FrameDecoder) -> None:
    """Frame 11 is lost, and frame 8, the nearest, comes only where frames before it are read, too."""
    content = bytearray((DATA / "av1.mp4").read_bytes())
    content[1842:1846], content[1987] = bytes([128, 0, 0, 0]), 121
    decoded, frames = decode(decoder, bytes(content), num_frames=4)
    assert (decoded.frame_count, decoded.indices, decoded.damaged_frames) == (4, [1, 5, 8, 11], 2)
    assert frames[3].any()


def test_damaged_videos_are_refused_with_the_reason(decoder: FrameDecoder, tmp_path: Path) -> None:
    whole = fast_start(V0, tmp_path)
    middle = len(whole) // 2
    damaged = {
        "cut, index in front": whole[:middle],
        "cut, index at the end": V0.read_bytes()[:middle],
        "header alone": whole[:32],
        "overwritten": whole[:middle] + bytes(8000) + whole[middle + 8000 :],
        "a playlist behind a header": whole[:8] + b"\n#EXTM3U\nfile:///etc/passwd\n",
    }
    assert decode(decoder, whole)[0].frame_count == 8
    for name, content in damaged.items():
        assert "cut off" in refusal(decoder, content).message, name


def test_a_file_of_the_other_kind_is_told_where_it_belongs(decoder: FrameDecoder) -> None:
    picture = io.BytesIO()
    Image.fromarray(scene(1, 0.0, 64, 48)).save(picture, "PNG")
    assert "image_url" in refusal(decoder, picture.getvalue()).message
    assert "video_url" in refusal(decoder, V0, "image").message
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # a telephone's photograph is not a video
    for kind in ("image", "video"):
        assert "HEIC" in refusal(decoder, heic, kind).message
    assert "TIFF" in refusal(decoder, b"II*\0" + bytes(200), "image").message
    assert "not an image of a known format" in refusal(decoder, b"just text", "image").message
    assert "cut off" in refusal(decoder, picture.getvalue()[:200], "image").message


def test_tags_in_any_encoding_are_no_fault(decoder: FrameDecoder, tmp_path: Path) -> None:
    with av.open(str(V0)) as source, av.open(str(tmp_path / "tags.mkv"), "w") as target:
        target.metadata["title"] = "REPLACED"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = (tmp_path / "tags.mkv").read_bytes().replace(b"REPLACED", "Café été".encode("latin-1"))
    assert decode(decoder, content)[0].frame_count == 8


def test_a_file_without_pictures_is_refused(decoder: FrameDecoder) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "no video stream" in refusal(decoder, file.getvalue()).message


def test_too_large_pictures_and_too_long_videos_are_refused_before_decoding(decoder: FrameDecoder) -> None:
    assert "4352x4096" in refusal(decoder, DATA / "huge.mp4").message
    picture = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(picture, "PNG")
    assert "20000x20000" in refusal(decoder, picture.getvalue(), "image").message
    with FrameDecoder(1, DecodeLimits(max_duration_s=1.0)) as strict:
        assert "3 s long" in refusal(strict, V0).message


def test_a_worker_that_needs_too_much_memory_fails_alone() -> None:
    picture = io.BytesIO()
    Image.new("1", (9900, 9900)).save(picture, "PNG")
    with FrameDecoder(1, DecodeLimits(memory_bytes=900 << 20), threads=1) as decoder:
        assert "900 MiB" in refusal(decoder, picture.getvalue(), "image").message
        assert decode(decoder, V0)[0].frame_count == 8
