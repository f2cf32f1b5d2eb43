"""Frames by content: what is decoded, what is not, and what never hits."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.metrics import Meter
from internvideo_server.preprocessing.frame_store import FrameStore, NamedMedia
from internvideo_server.preprocessing.media import Identity, Media, MediaPolicy, _digest, fetch
from internvideo_server.preprocessing.video import DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling, frames_key
from tests.asking import until
from tests.video_decoding import V0, V1

FRAME = 3 * 448 * 448


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def store(decoder: FrameDecoder, frames: int = 1000) -> tuple[FrameStore, Meter]:
    meter = Meter()
    return FrameStore(decoder, frames * FRAME, meter), meter


def settle(path: Path) -> None:
    """As if the file had been there for long; `changed` cannot be set, so `private` media stand for old files elsewhere."""
    os.utime(path, (0, 0))


def upload(path: Path) -> Media:
    return Media.from_chunks([path.read_bytes()], MediaPolicy(), None)


def named(frames: FrameStore, path: Path, num_frames: int = 8, param: str = "part") -> NamedMedia:
    return frames.name(upload(path), DecodeRequest(sampling=FrameSampling(num_frames=num_frames), param=param), Deadline())


def test_the_same_content_and_sampling_is_decoded_once(decoder: FrameDecoder) -> None:
    frames, meter = store(decoder)
    first, again = (frames.frames(named(frames, V0), Deadline()).buffer for _ in range(2))
    assert np.array_equal(first.frames(), again.frames())
    assert meter.value("internvideo_frames_decoded_total") == 8
    assert meter.value("internvideo_cache_hits_total", cache="frames") == 1


def test_what_was_decoded_is_known_and_whether_it_was_for_another_request(decoder: FrameDecoder) -> None:
    frames, _ = store(decoder)
    wanted = named(frames, V0)
    first, again = (frames.frames(wanted, Deadline()) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.decoded == first.decoded == frames.decoded(wanted.key)
    assert len(first.decoded.indices) == first.buffer.frame_count
    assert frames.decoded(b"another") is None


def test_other_content_and_other_sampling_never_hit(decoder: FrameDecoder) -> None:
    frames, meter = store(decoder)
    for path, count in ((V0, 8), (V1, 8), (V0, 12)):
        frames.frames(named(frames, path, count), Deadline())
    assert meter.value("internvideo_cache_hits_total", cache="frames") == 0
    options = [
        FrameSampling(num_frames=8),
        FrameSampling(num_frames=8, start=0.5),
        FrameSampling(num_frames=8, end=1.0),
        FrameSampling(fps=2.0),
    ]
    keys = {frames.name(upload(V0), DecodeRequest(sampling=each), Deadline()).key for each in options}
    assert len(keys) == len(options)
    kinds = {frames.name(upload(V0), DecodeRequest(kind), Deadline()).key for kind in ("video", "image")}  # type: ignore[arg-type]
    assert len(kinds) == 2


def test_frames_have_another_name_where_another_reader_or_limit_makes_others() -> None:
    def key(sampling: FrameSampling, **limits: Any) -> bytes:
        return frames_key(bytes(32), DecodeRequest(sampling=sampling), DecodeLimits(**limits))

    assert len({key(FrameSampling(fps=fps)) for fps in (1.0, 2.0)}) == 2
    assert len({key(FrameSampling(fps=100.0), max_frames=most) for most in (64, 128)}) == 2
    assert len({key(FrameSampling(), default_frames=count) for count in (64, 80)}) == 2
    assert len({key(FrameSampling(), reader=reader) for reader in ("pyav", "decord", "nvdec")}) == 3
    assert key(FrameSampling(), reader="auto") == key(FrameSampling(), reader="pyav")
    assert key(FrameSampling(num_frames=8), max_frames=64) == key(FrameSampling(num_frames=8), max_frames=128)  # no other frames


def test_what_a_request_leaves_out_is_the_default(decoder: FrameDecoder) -> None:
    frames, _ = store(decoder)
    keys = [
        frames.name(upload(V0), DecodeRequest(sampling=each), Deadline()).key
        for each in (FrameSampling(), FrameSampling(num_frames=80))
    ]
    assert keys[0] == keys[1]


def test_a_cache_of_no_size_decodes_every_time(decoder: FrameDecoder) -> None:
    frames, meter = store(decoder, frames=0)
    first, again = (frames.frames(named(frames, V0), Deadline()).buffer for _ in range(2))
    assert np.array_equal(first.frames(), again.frames())
    assert meter.value("internvideo_frames_decoded_total") == 16
    assert meter.value("internvideo_cache_bytes", cache="frames") == 0


def test_the_cache_stays_within_its_bytes(decoder: FrameDecoder) -> None:
    frames, meter = store(decoder, frames=10)
    for path in (V0, V1, V0):
        frames.frames(named(frames, path), Deadline())
    assert meter.value("internvideo_frames_decoded_total") == 24
    assert meter.value("internvideo_cache_bytes", cache="frames") == 8 * FRAME
    assert meter.value("internvideo_cache_evictions_total", cache="frames") == 2


def test_requests_at_the_same_time_share_the_decoding(decoder: FrameDecoder) -> None:
    frames, meter = store(decoder, frames=0)
    held = threading.Barrier(4)
    results: list[FrameBuffer] = []

    def ask() -> None:
        wanted = named(frames, V0)
        held.wait(30)
        results.append(frames.frames(wanted, Deadline()).buffer)

    blocker = decoder._take(Deadline())  # so that all of them have come before the first can be decoded
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not any(len(stream._waiters) == 4 for stream in list(frames._decoding)):
        assert any(thread.is_alive() for thread in threads)
    decoder._idle.put(blocker)
    for thread in threads:
        thread.join(30)
    assert len(results) == 4
    assert meter.value("internvideo_frames_decoded_total") == 8


def test_an_error_names_each_requests_own_field(decoder: FrameDecoder) -> None:
    frames, _ = store(decoder)
    for param in ("messages.0", "messages.7"):
        with pytest.raises(ServingError) as caught:
            frames.frames(named(frames, Path(__file__), param=param), Deadline())
        assert caught.value.param == f"{param}.url"


def test_a_changed_file_never_hits(decoder: FrameDecoder, tmp_path: Path) -> None:
    frames, meter = store(decoder)
    policy, path = MediaPolicy((tmp_path,)), tmp_path / "video.mp4"
    for source in (V0, V1):
        shutil.copy(source, path)
        settle(path)
        with fetch(path.as_uri(), policy) as medium:
            found = frames.frames(
                frames.name(medium, DecodeRequest(sampling=FrameSampling(num_frames=4)), Deadline()), Deadline()
            ).buffer
        with FrameBuffer() as buffer, upload(source) as medium:
            decoder.decode(medium.fd, DecodeRequest(sampling=FrameSampling(num_frames=4)), buffer)
            assert np.array_equal(found.frames(), buffer.frames())
    assert meter.value("internvideo_cache_hits_total", cache="frames") == 0


def test_a_file_that_was_written_just_now_is_copied_so_that_it_is_found_again(decoder: FrameDecoder, tmp_path: Path) -> None:
    frames, _ = store(decoder)
    path = tmp_path / "video.mp4"
    shutil.copy(V0, path)
    keys = []
    for _ in range(2):
        with fetch(path.as_uri(), MediaPolicy((tmp_path,))) as medium:
            path.write_bytes(path.read_bytes())  # again, perhaps without another time stamp
            named = frames.name(medium, DecodeRequest(), Deadline())
            assert named.lasting
            keys.append(named.key)
    assert keys[0] == keys[1]


def test_an_old_file_is_not_read_again_to_know_it(decoder: FrameDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = store(decoder)
    reads: list[int] = []
    real = os.pread
    with fetch(V0.as_uri(), MediaPolicy((V0.parent,))) as medium:
        first = frames.name(medium, DecodeRequest(), Deadline())
        if not first.lasting:
            pytest.skip("the checkout is seconds old")
        monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(1) or real(*arguments))
        assert frames.name(medium, DecodeRequest(), Deadline()).key == first.key
    assert reads == []


def test_a_file_that_was_written_just_now_is_read_each_time(decoder: FrameDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = store(decoder)
    monkeypatch.setattr(Identity, "settled", False)
    digests: list[bytes] = []
    monkeypatch.setattr(_digest, "_sha256", lambda *_: digests.append(bytes(32)) or bytes(32))
    for _ in range(2):
        with fetch(V0.as_uri(), MediaPolicy((V0.parent,))) as medium:
            frames.name(medium, DecodeRequest(), Deadline())
    assert len(digests) == 2


def test_a_file_that_changes_while_it_is_decoded_is_no_answer(decoder: FrameDecoder, tmp_path: Path) -> None:
    frames, _ = store(decoder)
    path = tmp_path / "video.mp4"
    shutil.copy(V0, path)
    with Media(os.open(path, os.O_RDONLY)) as medium:
        wanted = frames.name(medium, DecodeRequest(sampling=FrameSampling(num_frames=4)), Deadline())
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(ServingError, match="changed") as caught:
            frames.frames(wanted, Deadline())
    assert caught.value.code is ErrorCode.UNAVAILABLE


def test_a_cancelled_request_ends_though_its_decoder_stands_still() -> None:
    with FrameDecoder(1) as decoder:  # its worker is no one else's, and has not been replaced
        frames, _ = store(decoder)
        gone = threading.Event()
        (before,) = decoder.worker_pids
        os.kill(before, signal.SIGSTOP)  # decoding now takes for ever
        until(lambda: psutil.Process(before).status() == psutil.STATUS_STOPPED, "the worker went on")
        ended: list[ServingError] = []

        def ask() -> None:
            with pytest.raises(ServingError) as caught:
                frames.frames(named(frames, V1, 16), Deadline(cancelled=gone.is_set))
            ended.append(caught.value)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: bool(decoder._active), "nothing was decoded")
        gone.set()
        thread.join(30)
        assert [error.code for error in ended] == [ErrorCode.CANCELLED]
        until(lambda: decoder.worker_pids != [before], "the worker was not replaced")
