"""The index of an MP4 file says of its packets what reading them says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from internvideo_server.preprocessing.video import _listing
from internvideo_server.preprocessing.video._mov_tables import sample_times
from internvideo_server.preprocessing.video._probe import open_video
from tests.test_video_containers import make
from tests.video_decoding import DATA

NAMES = sorted(path.name for path in DATA.glob("*.mp4") if path.name != "huge.mp4")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg's program is not installed")


def both(path: Path) -> tuple[_listing.Listing | None, _listing.Listing]:
    file, stream = open_video(str(path), "mov")
    with file:
        packets = list(file.demux(stream))
        return _listing._by_index(file, stream, packets[: _listing._COMPARED]), _listing._by_reading(
            packets, stream.codec_context.name
        )


def assert_equal(index: _listing.Listing, read: _listing.Listing) -> None:
    assert np.array_equal(index.pts, read.pts)
    assert np.array_equal(index.keys, read.keys)
    assert np.array_equal(index.hidden, read.hidden)
    assert index.last_duration == read.last_duration


@pytest.mark.parametrize("name", NAMES)
def test_the_index_says_what_the_packets_say(name: str) -> None:
    index, read = both(DATA / name)
    if index:
        assert_equal(index, read)


def test_the_index_is_used_for_plain_files() -> None:
    assert sum(both(DATA / name)[0] is not None for name in NAMES) >= len(NAMES) // 2


@needs_ffmpeg
@pytest.mark.parametrize("name", ["uneven.mp4", "turned.mp4", "late.mp4", "trimmed.mp4", "late_fragments.mp4"])
def test_the_index_of_other_peoples_files(name: str, tmp_path: Path) -> None:
    index, read = both(make(tmp_path, name))
    assert (index is None) == (name == "late_fragments.mp4")
    if index:
        assert_equal(index, read)


@pytest.mark.parametrize("table", [b"ctts", b"stts", b"tkhd"])
def test_a_table_that_cannot_be_is_not_believed(table: bytes, tmp_path: Path) -> None:
    content = bytearray((DATA / "open_gop.mp4").read_bytes())
    entries = content.index(table) + 8
    content[entries : entries + 12] = bytes(range(200, 212))
    (tmp_path / "odd.mp4").write_bytes(content)
    assert sample_times(str(tmp_path / "odd.mp4"), 1, 45) is None
