"""Files as the world records them: every frame is the one that ffmpeg's own program shows, in its place and at its time."""

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from internvideo_server.errors import ServingError
from internvideo_server.preprocessing.video import DecodeLimits, FrameDecoder, FrameSampling
from internvideo_server.preprocessing.video._frames import decode_video
from internvideo_server.preprocessing.video._orientation import upright
from internvideo_server.preprocessing.video._pyav import PyavReader
from internvideo_server.preprocessing.video._sniff import HEAD_BYTES, video_container
from internvideo_server.preprocessing.video._timeline import Timeline
from tests.video_decoding import DATA, V0, decode, refusal

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg's program is not installed")
SMALL = (96, 64)
SOURCE = "-f lavfi -i testsrc2=s=192x128:r=25:d=4"
H264 = f"{SOURCE} -c:v libx264 -preset veryfast -threads 1 -g 25 -bf 3 -b_strategy 0 -pix_fmt yuv420p"
OPEN_H264 = f"{H264} -x264-params open-gop=1:keyint=25:scenecut=0:threads=1"
OPEN_HEVC = (
    f"{SOURCE} -c:v libx265 -x265-params open-gop=1:keyint=25:bframes=4:log-level=none:pools=1:frame-threads=1 -pix_fmt yuv420p"
)
MPEG2 = f"{SOURCE} -c:v mpeg2video -bf 2 -g 15"
UNEVEN = f"{SOURCE} -vf select='not(mod(n,7))+gt(n,60)' -vsync vfr -c:v libx264 -g 25 -threads 1"

# Name -> the programs' arguments, one after another; {} is the file before, {name} the last one.
RECIPES: dict[str, list[str]] = {
    "b_frames.avi": [f"{H264} {{}}.mp4", "-i {}.mp4 -c copy {name}"],
    "hevc.avi": [f"{OPEN_HEVC} {{}}.mp4", "-i {}.mp4 -c copy {name}"],
    "xvid_b_frames.avi": [f"{SOURCE} -c:v mpeg4 -bf 2 -g 12 {{name}}"],
    "b_frames.asf": [f"{H264} {{}}.mp4", "-i {}.mp4 -c copy {name}"],
    "cut_open_gop_h264.asf": [f"{OPEN_H264} {{}}.mkv", "-ss 1.3 -i {}.mkv -c copy {name}"],
    "all_marked_as_keys.avi": ["-f lavfi -i testsrc2=s=176x144:r=25:d=3 -c:v h263p {name}"],
    "palette.avi": [
        f"{SOURCE} -t 1 -filter_complex split[a][b];[a]palettegen[p];[b][p]paletteuse -c:v rawvideo -pix_fmt pal8 {{name}}"
    ],
    "b_frames.mxf": [f"{H264.replace('420p', '422p')} -profile:v high422 {{name}}"],
    "mpeg1_b_frames.mpg": [f"{SOURCE} -c:v mpeg1video -bf 2 -g 15 -f mpeg {{name}}"],
    "mpeg4.avi": [f"{SOURCE} -c:v mpeg4 -g 12 {{name}}"],
    "cut_open_gop_hevc.mkv": [f"{OPEN_HEVC} {{}}.mp4", "-ss 1.3 -i {}.mp4 -c copy {name}"],
    "cut_open_gop_hevc.mp4": [f"{OPEN_HEVC} {{}}.mp4", "-ss 1.3 -i {}.mp4 -c copy {name}"],
    "cut_open_gop_hevc.ts": [f"{OPEN_HEVC} {{}}.mp4", "-i {}.mp4 -c copy {}.ts", "-ss 1.3 -i {}.ts -c copy {name}"],
    "cut_open_gop_h264.mkv": [f"{OPEN_H264} {{}}.mkv", "-ss 1.3 -i {}.mkv -c copy {name}"],
    "trimmed.mp4": [f"{H264} {{}}.mp4", "-ss 1.37 -i {}.mp4 -t 1.5 -c copy {name}"],
    "late.mp4": [f"{H264} {{}}.mp4", "-itsoffset 1.5 -i {}.mp4 -c copy {name}"],
    "late.mkv": [f"{H264} {{}}.mp4", "-itsoffset 25000 -i {}.mp4 -c copy -copyts {name}"],
    "late_fragments.mp4": [
        f"{H264} {{}}.mp4",
        "-itsoffset 25000 -i {}.mp4 -c copy -copyts -movflags frag_keyframe+empty_moov {name}",
    ],
    "camera.m2ts": [f"{H264} -f mpegts -mpegts_m2ts_mode 1 {{name}}"],
    "program.mpg": [f"{MPEG2} -f vob {{name}}"],
    "mpeg2.ts": [f"{MPEG2} {{name}}"],
    "mpeg2.mxf": [f"{MPEG2} {{name}}"],
    "windows.wmv": [f"{SOURCE} -c:v wmv2 {{name}}"],
    "theora.ogv": [f"{SOURCE} -c:v libtheora -g 12 -b:v 1M {{name}}"],
    "vp8.ivf": [f"{SOURCE} -c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -g 40 {{name}}"],
    "vp9.webm": [f"{SOURCE} -c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16 -g 40 -cpu-used 5 {{name}}"],
    "vp9_split.mkv": [
        f"{SOURCE} -c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 16 -g 40 -cpu-used 5 {{}}.webm",
        "-i {}.webm -c copy -bsf:v vp9_superframe_split {name}",
    ],
    "uneven.mp4": [f"{UNEVEN} {{name}}"],
    "uneven.mkv": [f"{UNEVEN} {{name}}"],
    "turned.mp4": [f"{H264} {{}}.mp4", "-i {}.mp4 -c copy -metadata:s:v rotate=90 {name}"],
}


def make(folder: Path, name: str) -> Path:
    stem = str(folder / "step")
    for recipe in RECIPES[name]:
        arguments = recipe.replace("{name}", str(folder / name)).replace("{}", stem).split()
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-nostdin", *arguments], check=True, timeout=120)
    return folder / name


def open_reader(path: Path, threads: int = 2) -> PyavReader:
    container = video_container(path.read_bytes()[:HEAD_BYTES])
    assert container, "not taken for a video"
    return PyavReader(str(path), container, DecodeLimits(), threads)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L").resize(SMALL, Image.Resampling.BOX)).astype(int)


def read(reader: PyavReader, frames: list[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    faults = reader.read(frames, lambda number, picture: found.update({number: grey(picture())}))
    assert not faults.damaged | faults.missing
    return found


def by_ffmpeg(path: Path) -> np.ndarray:
    scaled = ["-vsync", "passthrough", "-vf", f"scale={SMALL[0]}:{SMALL[1]}:flags=area", "-f", "rawvideo", "-pix_fmt", "gray"]
    command = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", str(path), "-map", "0:v:0", *scaled, "-"]
    shown = subprocess.run(command, capture_output=True, timeout=120).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, SMALL[1], SMALL[0]).astype(int)


def assert_shown(reader: PyavReader, expected: np.ndarray, frames: list[int]) -> None:
    for number, picture in read(reader, frames).items():
        distances = np.abs(expected - picture).mean((1, 2))
        assert distances[number] < 3, number
        assert distances[number] <= distances.min() + 0.3, (number, int(distances.argmin()))


@needs_ffmpeg
@pytest.mark.parametrize("name", RECIPES)
def test_every_frame_is_the_one_that_ffmpeg_shows(name: str, tmp_path: Path) -> None:
    path = make(tmp_path, name)
    expected = by_ffmpeg(path)
    reader = open_reader(path)
    count = reader.timeline.frame_count
    assert count == len(expected) > 10
    assert_shown(reader, expected, list(range(count)))
    for wanted in ([count // 2], [1, count // 3, count - 1]):
        assert_shown(open_reader(path, 1), expected, wanted)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["interlaced.ts", "interlaced.mp4"])
def test_interlaced_pictures_have_the_colours_that_ffmpeg_shows(name: str, tmp_path: Path) -> None:
    codec = f"{MPEG2} -top 1" if name == "interlaced.ts" else f"{H264} -x264opts tff=1"
    path = tmp_path / name
    command = f"{codec.replace(SOURCE, f'{SOURCE} -t 1')} -flags +ilme+ildct {path}"
    subprocess.run(["ffmpeg", "-v", "error", "-y", *command.split()], check=True)
    as_rgb = ["-vsync", "passthrough", "-vf", "scale=flags=bicubic,format=rgb24", "-f", "rawvideo", "-"]
    shown = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *as_rgb], check=True, capture_output=True).stdout
    expected = np.frombuffer(shown, np.uint8).reshape(-1, 128, 192, 3).astype(int)
    found: dict[int, np.ndarray] = {}
    open_reader(path).read(list(range(len(expected))), lambda number, picture: found.update({number: picture().astype(int)}))
    assert max(np.abs(found[number] - expected[number]).mean() for number in found) < 0.5


def flv_tags(path: Path, later_ms: int) -> bytes:
    """What follows a file's header, moved in time."""
    content, place, found = path.read_bytes(), 13, b""
    while place + 11 <= len(content):
        size = 11 + int.from_bytes(content[place + 1 : place + 4], "big") + 4
        moment = int.from_bytes(content[place + 4 : place + 7], "big") + later_ms
        tag = content[place : place + 4] + moment.to_bytes(3, "big") + content[place + 7 : place + size]
        is_end = tag[0] == 9 and tag[12] == 2  # of the sequence
        found += b"" if is_end else tag
        place += size
    return found


@needs_ffmpeg
@pytest.mark.parametrize("size", ["192x128", "320x240"])
def test_a_recording_that_goes_on_with_another_header_is_decoded_by_it(size: str, tmp_path: Path) -> None:
    """As a broadcaster's encoder writes that was started again."""
    first, second = tmp_path / "first.flv", tmp_path / "second.flv"
    other = f"-f lavfi -i testsrc=s={size}:r=25:d=4 -c:v libx264 -profile:v main -coder 0 -refs 4 -g 25 -bf 2 -pix_fmt yuv420p"
    for path, source in ((first, H264), (second, other)):
        subprocess.run(["ffmpeg", "-v", "error", "-y", *source.split(), str(path)], check=True)
    path = tmp_path / "both.flv"
    path.write_bytes(first.read_bytes()[:13] + flv_tags(first, 0) + flv_tags(second, 4000))
    expected = by_ffmpeg(path)
    assert open_reader(path).timeline.frame_count == len(expected) == 200
    for wanted in ([199], [10, 90, 150], list(range(0, 200, 7))):
        assert_shown(open_reader(path, 2), expected, wanted)


def test_a_picture_that_a_cut_gif_has_in_part_is_no_frame(tmp_path: Path) -> None:
    content = (DATA / "moving.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) * 6 // 10])
    with av.open(str(tmp_path / "cut.gif")) as file:
        packets = sum(packet.size > 0 for packet in file.demux(video=0))
    assert open_reader(tmp_path / "cut.gif").timeline.frame_count == packets - 1


def test_a_segment_that_holds_its_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "segment.mp4").write_bytes((DATA / "fragments.mp4").read_bytes().replace(b"ftyp", b"styp", 1))
    assert open_reader(tmp_path / "segment.mp4").timeline.frame_count == 50


def test_an_index_that_marks_no_key_frames_is_not_believed(tmp_path: Path) -> None:
    marked = DATA / "closed_gop.mp4"
    (tmp_path / "unmarked.mp4").write_bytes(marked.read_bytes().replace(b"stss", b"free"))
    frames = [1, 20, 49]
    expected = read(open_reader(marked), frames)
    for threads in (1, 3):
        found = read(open_reader(tmp_path / "unmarked.mp4", threads), frames)
        assert all(np.array_equal(found[number], expected[number]) for number in frames)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["mpeg2.ts", "camera.m2ts", "program.mpg", "mpeg1_b_frames.mpg"])
@pytest.mark.parametrize("skipped", [100, 40_001])
def test_a_stream_that_begins_anywhere_is_read_from_its_first_whole_picture(name: str, skipped: int, tmp_path: Path) -> None:
    whole = make(tmp_path, name)
    expected = by_ffmpeg(whole)
    path = tmp_path / f"later{whole.suffix}"
    path.write_bytes(whole.read_bytes()[skipped:])
    reader = open_reader(path)
    count = reader.timeline.frame_count
    assert 10 < count <= len(expected)
    assert_shown(reader, expected[len(expected) - count :], list(range(count)))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["late_fragments.mp4", "xvid_b_frames.avi", "hevc.avi", "windows.wmv", "vp9.webm", "mpeg2.mxf"])
def test_a_recording_that_a_crash_ended_is_read_up_to_there(name: str, tmp_path: Path) -> None:
    whole = make(tmp_path, name)
    expected = by_ffmpeg(whole)
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    reader = open_reader(path)
    count = reader.timeline.frame_count
    assert 10 < count < len(expected)
    assert_shown(reader, expected, list(range(count - 3)))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["mpeg4.avi", "mpeg4.mkv", "hevc.mkv"])
def test_pictures_in_front_of_the_first_key_frame_are_no_frames(name: str, tmp_path: Path) -> None:
    codec = OPEN_HEVC if name == "hevc.mkv" else f"{SOURCE} -c:v mpeg4 -bf 2 -g 25"
    for arguments in (f"{codec} {{}}/whole.mkv", f"-i {{}}/whole.mkv -ss 1.3 -copyinkf -c copy {{}}/{name}"):
        subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments.format(*[tmp_path] * 2).split()], check=True)
    expected = by_ffmpeg(tmp_path / "whole.mkv")
    reader = open_reader(tmp_path / name)
    count = reader.timeline.frame_count
    assert 40 <= count <= 60
    assert_shown(reader, expected[len(expected) - count :], list(range(count)))


@needs_ffmpeg
def test_lengths_are_those_of_what_is_shown(tmp_path: Path) -> None:
    whole = dict.fromkeys(["late_fragments.mp4", "late.mp4", "late.mkv", "uneven.mkv", "b_frames.avi"], 4.0)
    for name, seconds in {**whole, "trimmed.mp4": 1.5}.items():
        assert abs(open_reader(make(tmp_path, name)).timeline.seconds - seconds) < 0.15, name


@needs_ffmpeg
def test_frames_of_packed_xvid_are_as_far_apart_as_they_were_recorded(tmp_path: Path) -> None:
    path = tmp_path / "packed.avi"
    command = ["ffmpeg", "-v", "error", *SOURCE.split(), "-c:v", "libxvid", "-bf", "2", "-g", "15", str(path)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this ffmpeg has no Xvid")
    timeline = open_reader(path).timeline
    assert np.allclose(np.diff(timeline.begins(list(range(timeline.frame_count)))), 0.04)


@needs_ffmpeg
def test_a_range_of_a_video_of_variable_rate_is_one_of_time(tmp_path: Path) -> None:
    path = make(tmp_path, "uneven.mp4")  # every 7th of 25 frames a second up to 2.4 s, then all
    head = path.read_bytes()[:HEAD_BYTES]

    def sampled(**options: float | int) -> list[float]:
        sampling = FrameSampling(**options)  # type: ignore[arg-type]
        return decode_video(str(path), head, sampling, DecodeLimits(), 1, lambda place, planes: None).seconds

    assert max(sampled(num_frames=8, start=0.5, end=1.5)) < 1.5
    assert min(sampled(num_frames=8, start=3.0)) >= 2.96
    assert np.allclose(np.diff(sampled(fps=2.0)), 0.5, atol=0.28)
    with pytest.raises(ServingError, match="beyond the end"):
        sampled(num_frames=8, start=4.1)


def test_seconds_follow_the_time_stamps() -> None:
    stamps = np.array([0, 1000, 2000, 2100, 2200], np.int64)
    line = Timeline.of(stamps, 100, 0.001, 30.0, 5)  # type: ignore[arg-type]
    assert line.seconds == pytest.approx(2.3)
    assert [line.shown_at(second) for second in (0.0, 0.99, 1.0, 2.05, 9.0)] == [0, 0, 1, 2, 4]
    assert [line.last_before(second) for second in (0.0, 1.0, 2.0, 2.15)] == [0, 0, 1, 3]
    assert Timeline.of(np.arange(0, 4000, 40), 40, 0.001, 25.0, 100).bounds is None  # type: ignore[arg-type]


class _Frame:
    def __init__(self, *matrix: int) -> None:
        a, b, c, d = (value << 16 for value in matrix)
        self.side_data = {"DISPLAYMATRIX": struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)}


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), [[0, 1, 2], [3, 4, 5]]),
        ((-1, 0, 0, 1), [[2, 1, 0], [5, 4, 3]]),  # mirrored left and right
        ((1, 0, 0, -1), [[3, 4, 5], [0, 1, 2]]),
        ((-1, 0, 0, -1), [[5, 4, 3], [2, 1, 0]]),
        ((0, 1, -1, 0), [[3, 0], [4, 1], [5, 2]]),  # a quarter turn clockwise
        ((0, -1, 1, 0), [[2, 5], [1, 4], [0, 3]]),
        ((0, 1, 1, 0), [[0, 3], [1, 4], [2, 5]]),
        ((0, -1, -1, 0), [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_all_eight_orientations(matrix: tuple[int, ...], shown: list[list[int]]) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert upright(pixels, _Frame(*matrix))[:, :, 0].tolist() == shown  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def test_sampled_frames_and_their_seconds_are_told(decoder: FrameDecoder) -> None:
    decoded, _ = decode(decoder, V0)
    assert decoded.seconds == pytest.approx([index / 15 for index in decoded.indices])
    assert decoded.damaged_frames == 0


@needs_ffmpeg
def test_damage_is_counted_or_refused(decoder: FrameDecoder, tmp_path: Path) -> None:
    content = bytearray(make(tmp_path, "mpeg4.avi").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    decoded, frames = decode(decoder, bytes(content), num_frames=32)
    assert 0 < decoded.damaged_frames < 16
    assert len(frames) == 32
    with FrameDecoder(1, DecodeLimits(strict_media=True)) as strict:
        assert "sampled frames" in refusal(strict, bytes(content)).message


@needs_ffmpeg
def test_sound_with_a_cover_is_no_video(decoder: FrameDecoder, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cover.jpg")
    path = tmp_path / "song.m4a"
    command = f"-f lavfi -i sine -i {tmp_path}/cover.jpg -map 0 -map 1 -t 2 -c:v copy -disposition:v attached_pic {path}"
    subprocess.run(["ffmpeg", "-v", "error", "-y", *command.split()], check=True)
    assert "cover" in refusal(decoder, path).message


@needs_ffmpeg
@pytest.mark.parametrize(("name", "arguments"), [("raw.h264", H264), ("raw.hevc", OPEN_HEVC), ("raw.m2v", MPEG2)])
def test_streams_without_a_container_are_refused_by_name(
    name: str, arguments: str, decoder: FrameDecoder, tmp_path: Path
) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments.split(), str(tmp_path / name)], check=True)
    message = refusal(decoder, tmp_path / name).message
    assert "stream without a container" in message
    assert "ffmpeg" in message


@pytest.mark.parametrize(("file", "place"), [("hevc_10_bit.mp4", 1613), ("hevc_open_gop.mp4", 1645)])
def test_frames_that_cannot_be_read_are_stood_in_for_by_their_neighbours(decoder: FrameDecoder, file: str, place: int) -> None:
    content = bytearray((DATA / file).read_bytes())
    content[place : place + 512] = random.Random(0).randbytes(512)
    decoded, frames = decode(decoder, bytes(content), num_frames=16)
    assert 0 < decoded.damaged_frames < 16
    assert len(frames) == 16
