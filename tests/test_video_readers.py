"""Reading frames of every kind of file: exactly those that sequential decoding gives, and no more work than needed."""

import itertools
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from decord import VideoReader
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_server.preprocessing.video._decord import DecordReader
from internvideo_server.preprocessing.video._packets import PacketTable
from internvideo_server.preprocessing.video._probe import open_video
from internvideo_server.preprocessing.video._pyav import PyavReader, _pixels
from internvideo_server.preprocessing.video._reader import Faults, Reader
from internvideo_server.preprocessing.video._request import DecodeLimits
from internvideo_server.preprocessing.video._resize import Resizers, by_pillow
from internvideo_server.preprocessing.video._resize_kernels import compiled
from internvideo_server.preprocessing.video._sniff import HEAD_BYTES, video_container
from internvideo_server.settings import VideoReader as VideoReaderName
from tests.data.make_videos import KINDS, scene
from tests.video_decoding import DATA

FILES = sorted([*KINDS, "edit_list.mp4", "turned.mp4", "v0.mp4", "portrait.mp4", "hevc.mp4", "vp9.webm", "av1.mp4"])
NOT_DECORDS = {"av1.mp4", "av1_groups.mp4", "moving.gif"}  # codecs that it does not read
OTHER_IN_DECORD = {
    "edit_list.mp4",  # it counts what is hidden, and repeats the last frame instead
    "stream.ts",  # it loses the first group, and repeats the last frame instead
    "hevc_10_bit.mp4",  # its FFmpeg rounds 10 bits to 8 otherwise
}


def open_reader(name: str, threads: int = 1, reader: VideoReaderName = "auto") -> PyavReader:
    path = DATA / name
    container = video_container(path.read_bytes()[:HEAD_BYTES])
    assert container
    return PyavReader(str(path), container, DecodeLimits(reader=reader), threads)


def read(reader: Reader, frames: list[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}

    def take(number: int, picture: object) -> None:
        assert number not in found, "read twice"
        found[number] = np.asarray(picture())  # type: ignore[operator]

    assert reader.read(frames, take) == Faults()
    assert sorted(found) == frames
    return found


def sequential(name: str) -> list[np.ndarray]:
    """All frames by plain decoding, without seeks, threads or a table; not turned."""
    with av.open(str(DATA / name)) as file:
        return [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in file.decode(video=0)]


@pytest.mark.parametrize("name", FILES)
def test_sampled_frames_are_those_of_sequential_reading(name: str) -> None:
    expected = sequential(name)
    if name == "turned.mp4":
        expected = [np.rot90(frame, -1) for frame in expected]
    for seed in range(8):
        reader = open_reader(name, threads=1 + seed % 3)
        wanted = sorted(random.Random(seed).sample(range(len(expected)), 4))
        for number, frame in read(reader, wanted).items():
            assert np.array_equal(frame, expected[number]), (number, wanted)


@pytest.mark.parametrize("name", sorted(set(FILES) - NOT_DECORDS - OTHER_IN_DECORD))
def test_frames_are_numbered_and_coloured_as_by_the_originals_reader(name: str) -> None:
    decord = VideoReader(str(DATA / name), num_threads=1)
    reader = open_reader(name, threads=2)
    assert (reader.timeline.frame_count, reader.timeline.fps) == (len(decord), decord.get_avg_fps())
    frames = read(reader, list(range(reader.timeline.frame_count)))
    for number in range(reader.timeline.frame_count):
        assert np.array_equal(frames[number], decord.next().asnumpy()), number


def test_frames_outside_an_edit_list_are_not_counted() -> None:
    whole, cut = open_reader("closed_gop.mp4"), open_reader("edit_list.mp4")
    assert (whole.timeline.frame_count, cut.timeline.frame_count) == (50, 43)
    shown, wanted = read(cut, [0, 20, 42]), read(whole, [7, 27, 49])
    for number, original in ((0, 7), (20, 27), (42, 49)):
        assert np.array_equal(shown[number], wanted[original])


def test_a_turned_video_is_shown_upright() -> None:
    upright, turned = read(open_reader("closed_gop.mp4"), [5])[5], read(open_reader("turned.mp4"), [5])[5]
    assert turned.shape == (160, 96, 3)
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_the_originals_reader_can_be_chosen() -> None:
    reader = DecordReader(str(DATA / "v0.mp4"), "mov", DecodeLimits(), 1)
    mine = open_reader("v0.mp4")
    assert (reader.timeline.frame_count, reader.timeline.fps) == (mine.timeline.frame_count, mine.timeline.fps)
    a, b = read(reader, [0, 7, 44]), read(mine, [0, 7, 44])
    assert all(np.array_equal(a[number], b[number]) for number in a)


def table(name: str) -> PacketTable:
    container = video_container((DATA / name).read_bytes()[:HEAD_BYTES])
    assert container
    file, stream = open_video(str(DATA / name), container)
    with file:
        return PacketTable(file, stream, lambda: open_video(str(DATA / name), container), DecodeLimits())


def test_groups_that_hold_no_sampled_frame_are_not_decoded() -> None:
    segments = table("closed_gop.mp4").segments([1, 2, 40])
    assert [segment.wanted for segment in segments] == [[1, 2], [40]]
    assert [segment.first for segment in segments] == [0, 36]
    assert sum(segment.cost for segment in segments) < 15


@pytest.mark.parametrize("name", ["closed_gop.mp4", "v0.mp4", "vp9_groups.webm", "stream.ts"])
def test_no_packet_of_a_closed_group_is_decoded_twice(name: str) -> None:
    packets = table(name)
    segments = packets.segments(list(range(0, packets.frame_count, 3)))
    for before, after in itertools.pairwise(segments):
        assert before.last < after.first


def test_what_an_open_group_shows_first_is_decoded_from_the_group_before() -> None:
    packets = table("open_gop.mp4")
    keys = [segment.first for segment in packets.segments(list(range(packets.frame_count)))]
    key = packets.frame_number(int(packets.pts[keys[1]]))
    assert key is not None
    assert packets.segments([key - 1])[0].first == keys[0]
    assert packets.segments([key])[0].first == keys[1]


def test_a_cut_transport_stream_is_refused_or_read_right(tmp_path: Path) -> None:
    content = (DATA / "stream.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[: len(content) // 2])
    reader = PyavReader(str(tmp_path / "cut.ts"), "mpegts", DecodeLimits(), 1)
    assert reader.timeline.frame_count < 50
    expected = sequential("stream.ts")
    assert np.array_equal(read(reader, [3])[3], expected[3])


@pytest.mark.parametrize("name", ["closed_gop.mp4", "hevc_open_gop.mp4", "av1_groups.mp4"])
def test_damage_is_told_and_every_other_frame_is_exact(name: str, tmp_path: Path) -> None:
    content = bytearray((DATA / name).read_bytes())
    damaged, index = len(content) * 2 // 5, content.find(b"moov")
    end = min(damaged + len(content) // 4, index if index > damaged else len(content))
    content[damaged:end] = bytes(end - damaged)
    (tmp_path / name).write_bytes(content)
    container = video_container(bytes(content[:HEAD_BYTES]))
    assert container
    reader = PyavReader(str(tmp_path / name), container, DecodeLimits(), 2)
    frames: dict[int, np.ndarray] = {}
    wanted = list(range(reader.timeline.frame_count))
    faults = reader.read(wanted, lambda number, picture: frames.update({number: picture()}))
    assert faults.damaged | faults.missing
    assert sorted({*frames, *faults.missing}) == wanted
    if len(wanted) == 50:  # a demuxer may lose the packets themselves
        whole = sequential(name)
        exact = [number for number in wanted if number not in faults.damaged | faults.missing]
        assert exact
        assert all(np.array_equal(frames[number], whole[number]) for number in exact)


def by_the_book(frame: np.ndarray) -> np.ndarray:
    """Pillow's bicubic resize of [height, width, 3], horizontal then vertical; float64 holds its integers and sums them fast."""

    def weights(size: int) -> np.ndarray:  # [448, size]
        scale, rows = size / 448, np.zeros((448, size))
        support = 2.0 * max(scale, 1.0)
        for i in range(448):
            centre = (i + 0.5) * scale
            low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
            x = np.abs((np.arange(low, high) - centre + 0.5) * (1.0 / max(scale, 1.0)))
            near = (1.5 * x - 2.5) * x * x + 1
            far = (((x - 5) * x + 8) * x - 4) * -0.5
            taps = np.where(x < 1, near, np.where(x < 2, far, 0.0))
            rows[i, low:high] = taps / sum(taps.tolist())
        return np.trunc(rows * 2**22 + np.copysign(0.5, rows))

    def along(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return np.clip((np.tensordot(kernel, values, 1).astype(np.int64) + (1 << 21)) >> 22, 0, 255).astype(np.float64)

    height, width, _ = frame.shape
    across = along(frame.transpose(1, 0, 2).astype(np.float64), weights(width))  # [448, height, 3]
    return along(across.transpose(1, 0, 2), weights(height)).astype(np.uint8)  # [448, 448, 3]


@settings(max_examples=12, deadline=None)
@given(st.integers(16, 900), st.integers(16, 900), st.integers(0, 2**32 - 1))
def test_the_resize_is_the_originals_to_the_bit(width: int, height: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = by_the_book(frame).transpose(2, 0, 1)
    assert np.array_equal(by_pillow(frame), expected)
    assert np.array_equal(compiled()(frame), expected)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 700), (700, 1), (3, 5), (448, 448), (449, 447), (1080, 1920), (2160, 3840)]
)
def test_the_compiled_resize_is_pillows_at_every_size_and_stride(height: int, width: int) -> None:
    frame = np.random.default_rng(height).choice(np.array([0, 255, 128], np.uint8), (height, width, 3))  # clips a lot
    upright, turned, padded = frame, np.rot90(frame), np.pad(frame, ((0, 0), (0, 7), (0, 0)))[:, :width]
    for pixels in (upright, turned, padded):
        assert np.array_equal(compiled()(pixels), by_pillow(pixels))


def test_a_fault_while_resizing_ends_the_reading() -> None:
    def broken() -> np.ndarray:
        raise MemoryError

    written: dict[int, np.ndarray] = {}
    with pytest.raises(MemoryError), Resizers(1, written.__setitem__) as resizers:
        for place in range(10):
            resizers.submit(broken, [place])
    assert not written
    with Resizers(2, written.__setitem__) as resizers:
        resizers.submit(lambda: scene(0, 0, 64, 48), [3, 5])
    assert sorted(written) == [3, 5]


@pytest.mark.parametrize("width", [96, 98, 360, 362])
def test_the_gpus_order_of_samples_gives_the_same_pixels(width: int) -> None:
    frame = av.VideoFrame.from_ndarray(scene(0, 0.4, width, 66), "rgb24").reformat(format="yuv420p")
    back = frame.reformat(format="nv12").reformat(format="yuv420p", threads=1)
    assert np.array_equal(_pixels(back), _pixels(frame))


@pytest.fixture(scope="module")
def decoders_process() -> Iterator[ProcessPoolExecutor]:
    """FFmpeg refuses a CUDA context that torch has made in its process; decoders are in processes of their own, too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.gpu
@pytest.mark.parametrize("name", FILES)
def test_a_gpu_gives_the_frames_of_the_cpu(decoders_process: ProcessPoolExecutor, name: str) -> None:
    decoders_process.submit(frames_are_those_of_the_cpu, name, "nvdec").result()


def frames_are_those_of_the_cpu(name: str, reader: VideoReaderName) -> None:
    on_gpu, on_cpu = open_reader(name, 2, reader), open_reader(name, 2)
    for wanted in (list(range(on_cpu.timeline.frame_count)), [on_cpu.timeline.frame_count // 2]):
        expected, found = read(on_cpu, wanted), read(on_gpu, wanted)
        assert all(np.array_equal(found[number], expected[number]) for number in wanted)
        on_gpu, on_cpu = open_reader(name, 1, reader), open_reader(name, 1)
