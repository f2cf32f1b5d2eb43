"""The tower sees a video's first frames while the rest is decoded: nothing changes but when."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FRAME_BYTES, FrameBuffer
from internvideo_server.handoff import (
    Ending,
    Fault,
    FramePart,
    HandoffClient,
    HandoffServer,
    IncomingFrames,
    MoreFrames,
    Reservation,
)
from internvideo_server.metrics import Meter
from internvideo_server.preprocessing.frame_store import FrameStore, NamedMedia
from internvideo_server.preprocessing.frame_stream import FrameStream, hand_over
from internvideo_server.preprocessing.media import Media, MediaPolicy
from internvideo_server.preprocessing.video import DecodedMedia, DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling
from internvideo_server.vit.embedder import Embedder, NamedFrames
from internvideo_server.vit.scheduler import TowerQueue
from internvideo_server.vit.table_buffers import RegionPool
from tests.asking import until
from tests.tower_lab import LabTower, in_thread
from tests.video_decoding import V0, V1, ready_pids

NONE = torch.empty(0, 3, 448, 448, dtype=torch.uint8)
FAR = 3600.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


class Chain:
    """The two sides of the socket, and a tower."""

    def __init__(self, decoder: FrameDecoder, frames_mb: int, embeddings: int = 1 << 30, most_frames: int = 128) -> None:
        self.tower, self.meter, name = LabTower(), Meter(), secrets.token_hex(16)
        self.store = FrameStore(decoder, frames_mb << 20, Meter())
        pool = RegionPool(4, most_frames * 16 * 8 * 4, "test_", self.tower.device, self.meter)
        self.embedder = Embedder(self.tower, pool, embeddings, self.meter)
        self.server, self.client = HandoffServer(self.embedder.reservations, name), HandoffClient(name)

    def name(self, path: Path, frames: int = 16, field: str = "messages.0") -> NamedMedia:
        medium = Media.from_chunks([path.read_bytes()], MediaPolicy(), None)
        return self.store.name(medium, DecodeRequest(sampling=FrameSampling(num_frames=frames), param=field), Deadline())

    def hand_over(self, named: NamedMedia, request: str = "request") -> tuple[Reservation, FrameStream, bool]:
        """What `preprocessing` does of a request."""
        deadline = Deadline(time.monotonic() + FAR)
        stream, cached = self.store.begin(named, deadline)
        named.medium.close()
        reservation = self.client.reserve(request, deadline.at)
        assert hand_over({named.key: stream}, {named.key: named.request.param or ""}, reservation, request, deadline)
        return reservation, stream, cached

    def rows(self, named: NamedMedia, reservation: Reservation, deadline: Deadline | None = None) -> tuple[list[int], Ending]:
        """What `vit` does of it: each frame's first pixel."""
        table = self.embedder.table(NONE, [NamedFrames(named.key, 0)], reservation.number, deadline or Deadline())
        pixels = [int(value) for value in table.rows[::16, 0].tolist()]
        table.release()
        return pixels, table.endings[named.key]

    def close(self) -> None:
        self.server.close()
        self.embedder.close()


@pytest.fixture
def chain(decoder: FrameDecoder) -> Iterator[Chain]:
    made = Chain(decoder, 1024)
    yield made
    made.close()


@pytest.fixture
def without_caches(decoder: FrameDecoder) -> Iterator[Chain]:
    made = Chain(decoder, 0, 0)
    yield made
    made.close()


def first_pixels(path: Path, frames: int = 16) -> list[int]:
    with FrameDecoder(1, DecodeLimits(max_frames=512)) as own, FrameBuffer() as buffer, path.open("rb") as file:
        own.decode(file.fileno(), DecodeRequest(sampling=FrameSampling(num_frames=frames)), buffer)
        return [int(value) for value in buffer.frames()[:, 0, 0, 0]]


@pytest.mark.parametrize("caches", ["chain", "without_caches"])
def test_rows_are_those_of_a_video_that_was_decoded_first(caches: str, request: pytest.FixtureRequest) -> None:
    chain: Chain = request.getfixturevalue(caches)
    for path in (V0, V1):
        named = chain.name(path)
        reservation, _, cached = chain.hand_over(named)
        assert not cached
        pixels, ending = chain.rows(named, reservation)
        assert pixels == first_pixels(path)
        assert ending.fault is None and ending.seconds > 0
        again = chain.name(path)
        reservation, _, cached = chain.hand_over(again)
        assert cached == (caches == "chain")
        assert chain.rows(again, reservation)[0] == pixels


def test_a_request_is_handed_over_before_its_first_frame_is_decoded(chain: Chain, decoder: FrameDecoder) -> None:
    """The decoder is held as soon as its plan is out; the request is in `vit` by then."""
    named = chain.name(V1, 64)
    pid = ready_pids(decoder)[0]
    deadline = Deadline(time.monotonic() + FAR)
    stream, _ = chain.store.begin(named, deadline)
    os.kill(pid, signal.SIGSTOP)
    reservation = chain.client.reserve("request", deadline.at)
    assert hand_over({named.key: stream}, {}, reservation, "request", deadline)
    assert stream.planned is not None and stream.planned.frame_count == 64
    asked = in_thread(lambda: chain.rows(named, reservation))
    os.kill(pid, signal.SIGCONT)
    pixels, _ = asked.result(60)
    assert pixels == first_pixels(V1, 64)


def test_two_requests_share_one_decoding_and_one_pass_of_the_tower(chain: Chain, decoder: FrameDecoder) -> None:
    blocker = decoder._take(Deadline())
    asked = [in_thread(lambda: chain.hand_over(chain.name(V0))) for _ in range(2)]
    until(lambda: any(len(stream._waiters) == 2 for stream in list(chain.store._decoding)), "both wait")
    decoder._idle.put(blocker)
    handed = [each.result(60) for each in asked]
    named = chain.name(V0)
    answers = [in_thread(lambda reservation=reservation: chain.rows(named, reservation)) for reservation, _, _ in handed]
    assert [answer.result(60)[0] for answer in answers] == [first_pixels(V0)] * 2
    assert sum(map(len, chain.tower.chunks)) == 16
    assert sorted(cached for _, _, cached in handed) == [False, True]


def test_frames_that_are_kept_nowhere_go_as_they_are_used(without_caches: Chain) -> None:
    named = without_caches.name(V0, 32)
    reservation, stream, _ = without_caches.hand_over(named)
    pixels, _ = without_caches.rows(named, reservation)
    assert pixels == first_pixels(V0, 32)
    assert os.fstat(stream.buffer.fd).st_size == 32 * FRAME_BYTES
    assert os.fstat(stream.buffer.fd).st_blocks == 0


@pytest.fixture
def long_videos() -> Iterator[Chain]:
    with FrameDecoder(1, DecodeLimits(max_frames=512)) as decoder:
        made = Chain(decoder, 0, 0, 512)
        yield made
        made.tower.run()
        made.close()


def resting(chain: Chain, deadline: Deadline | None = None) -> tuple[FrameStream, Future[tuple[list[int], Ending]]]:
    """A long video whose decoder waits for the tower, which is held, and the answer."""
    chain.tower.hold()
    named = chain.name(V1, 512)
    reservation, stream, _ = chain.hand_over(named)
    asked = in_thread(lambda: chain.rows(named, reservation, deadline))
    (pid,) = chain.store._decoder.worker_pids
    status = Path(f"/proc/{pid}/stat")
    until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "the decoder goes on")
    return stream, asked


def test_a_decoder_waits_for_a_slower_tower_so_that_the_host_holds_no_whole_video(long_videos: Chain) -> None:
    stream, asked = resting(long_videos)
    assert os.fstat(stream.buffer.fd).st_blocks * 512 < 256 * FRAME_BYTES
    long_videos.tower.run()
    assert asked.result(60)[0] == first_pixels(V1, 512)
    assert os.fstat(stream.buffer.fd).st_blocks == 0


def test_a_decoder_that_waits_for_the_tower_ends_with_its_request(long_videos: Chain) -> None:
    deadline = Deadline()
    _, asked = resting(long_videos, deadline)
    long_videos.store.stop("request")
    deadline.cancel()
    until(lambda: not long_videos.store._decoding, "the decoding goes on")
    long_videos.tower.run()
    with pytest.raises(ServingError, match="cancelled"):
        asked.result(60)
    named = long_videos.name(V0, 16)
    reservation, _, _ = long_videos.hand_over(named, "next")
    assert long_videos.rows(named, reservation)[0] == first_pixels(V0)


def test_a_decoder_that_waits_for_the_tower_goes_on_when_another_video_needs_it(long_videos: Chain) -> None:
    _, asked = resting(long_videos)
    assert long_videos.store.frames(long_videos.name(V0, 16), Deadline.after(60)).decoded.frame_count == 16
    long_videos.tower.run()
    assert asked.result(60)[0] == first_pixels(V1, 512)


def test_frames_that_are_kept_are_decoded_however_slow_the_tower_is(chain: Chain) -> None:
    chain.tower.hold()
    named = chain.name(V1, 128)
    reservation, _, _ = chain.hand_over(named)
    asked = in_thread(lambda: chain.rows(named, reservation))
    until(lambda: not chain.store._decoding, "the decoder waits")
    chain.tower.run()
    assert asked.result(60)[0] == first_pixels(V1, 128)


def test_kept_frames_are_whole_for_the_next_request(chain: Chain) -> None:
    named = chain.name(V0, 32)
    reservation, _, _ = chain.hand_over(named)
    chain.rows(named, reservation)
    until(lambda: not chain.store._decoding, "the decoding goes on")
    kept = chain.store.frames(chain.name(V0, 32), Deadline())
    assert kept.cached and [int(value) for value in kept.buffer.frames()[:, 0, 0, 0]] == first_pixels(V0, 32)


# ---- what goes wrong


def a_stream(frames: int = 8) -> FrameStream:
    stream = FrameStream()
    assert stream.join(Deadline())
    stream.plan(DecodedMedia(frames, list(range(frames)), frames, 1.0))
    return stream


def handed(chain: Chain, stream: FrameStream, key: bytes, request: str = "request") -> Reservation:
    deadline = Deadline(time.monotonic() + FAR)
    assert stream.join(deadline)
    reservation = chain.client.reserve(request, deadline.at)
    assert hand_over({key: stream}, {key: f"field.of.{request}"}, reservation, request, deadline)
    return reservation


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_video_that_turns_out_to_be_damaged_is_told_with_text_field_and_code(chain: Chain, whole: int) -> None:
    """However much of it has been through the tower: even all."""
    chain.tower.chunk_frames = 4
    stream, key = a_stream(), secrets.token_bytes(32)
    reservations = [handed(chain, stream, key, name) for name in "ab"]
    stream.add(list(range(whole)))
    asked = [in_thread(lambda r=r: chain.embedder.table(NONE, [NamedFrames(key, 0)], r.number, Deadline())) for r in reservations]
    until(lambda: sum(map(len, chain.tower.chunks)) == 4 * whole or not whole, "the tower has seen what is there")
    stream.fail(ServingError(ErrorCode.INVALID_ARGUMENT, "3 of the 8 sampled frames cannot be read", "url"))
    for name, answer in zip("ab", asked, strict=True):
        with pytest.raises(ServingError, match="3 of the 8 sampled frames") as caught:
            answer.result(60)
        assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_ARGUMENT, f"field.of.{name}.url")
    assert chain.embedder.reservations.hold_embeddings(1, "", time.monotonic() + FAR, [key]) == set()  # nothing is kept
    until(lambda: not chain.meter.value("internvideo_regions_in_use"), "a region is not given back")


def test_damage_is_reported_when_it_is_known(chain: Chain) -> None:
    stream, key = a_stream(), secrets.token_bytes(32)
    reservation = handed(chain, stream, key)
    asked = in_thread(lambda: chain.embedder.table(NONE, [NamedFrames(key, 0)], reservation.number, Deadline()))
    stream.add([1])
    assert stream.planned is not None
    stream.finish(replace(stream.planned, damaged_frames=2), 1.5)
    assert asked.result(60).endings[key] == Ending(2, 1.5)


def test_a_stop_ends_the_decoding_of_a_request_that_was_handed_over(chain: Chain, decoder: FrameDecoder) -> None:
    named = chain.name(V1, 64)
    before = ready_pids(decoder)
    deadline = Deadline(time.monotonic() + FAR)
    stream, _ = chain.store.begin(named, deadline)
    os.kill(before[0], signal.SIGSTOP)  # it would take for ever
    reservation = chain.client.reserve("unwanted", deadline.at)
    assert hand_over({named.key: stream}, {}, reservation, "unwanted", deadline)
    chain.store.stop("another")
    assert not stream.deadline.expired()
    chain.store.stop("unwanted")
    until(lambda: not chain.store._decoding, "the decoding goes on")
    assert ready_pids(decoder) != before


def test_a_request_that_left_vit_ends_its_decoding(chain: Chain) -> None:
    stream, key = a_stream(), secrets.token_bytes(32)
    reservation = FrameStream.join, handed(chain, stream, key)
    stream.leave(stream._waiters[0][1])  # nobody else waits
    chain.embedder.reservations.claim(reservation[1].number)  # and is dropped
    assert not stream.deadline.expired()
    stream.add([0])
    assert stream.deadline.expired()


def test_a_deadline_ends_the_wait_for_frames(chain: Chain) -> None:
    stream, key = a_stream(), secrets.token_bytes(32)
    reservation = handed(chain, stream, key)
    with pytest.raises(ServingError) as caught:
        chain.embedder.table(NONE, [NamedFrames(key, 0)], reservation.number, Deadline.after(0.2))
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    until(lambda: not chain.meter.value("internvideo_regions_in_use"), "a region is not given back")


def test_what_cannot_be_true_of_a_stream_is_no_end_of_the_socket(chain: Chain) -> None:
    for groups, ending in (((2,), None), ((0,), Ending()), ((-1,), None)):
        stream, key = a_stream(), secrets.token_bytes(32)
        reservation = handed(chain, stream, key)
        assert reservation.tell(MoreFrames(stream._number, groups, ending)) is None
    good, key = a_stream(), secrets.token_bytes(32)
    reservation = handed(chain, good, key)
    assert good.planned is not None
    good.finish(good.planned, 0.0)
    chain.embedder.table(NONE, [NamedFrames(key, 0)], reservation.number, Deadline()).release()
    part = FramePart(key, 4, 1, (7,))
    with FrameBuffer() as buffer:
        buffer.reserve(4)
        assert not chain.client.reserve("", time.monotonic() + FAR).hold_frames([(part, buffer)])


def test_who_joins_what_was_given_up_begins_anew(decoder: FrameDecoder) -> None:
    store = FrameStore(decoder, 1 << 30, Meter())
    gone = threading.Event()
    blocker = decoder._take(Deadline())
    medium = Media.from_chunks([V0.read_bytes()], MediaPolicy(), None)
    named = store.name(medium, DecodeRequest(sampling=FrameSampling(num_frames=8)), Deadline())
    first = in_thread(lambda: store.begin(named, Deadline(cancelled=gone.is_set)))
    until(lambda: bool(store._decoding), "it has begun")
    gone.set()
    with pytest.raises(ServingError, match="cancelled"):
        first.result(30)
    second = in_thread(lambda: store.frames(named, Deadline()))
    decoder._idle.put(blocker)
    assert second.result(60).decoded.frame_count == 8


# ---- the tower


@given(st.permutations(range(6)), st.lists(st.integers(1, 3), min_size=1, max_size=6), st.sampled_from([4, 8, 16]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_groups_may_come_in_any_order_and_in_any_company(order: list[int], steps: list[int], chunk: int) -> None:
    tower = LabTower()
    tower.chunk_frames = chunk
    queue = TowerQueue(tower)
    try:
        with FrameBuffer() as buffer:
            pixels = np.repeat(np.arange(24, dtype=np.uint8), FRAME_BYTES)
            os.pwrite(buffer.fd, pixels.data, 0)
            incoming, out = IncomingFrames(buffer, 24), torch.empty(24 * 16, 8)
            task = queue.submit(incoming, out, Deadline(), keep=True)
            beside = torch.full((8, 3, 448, 448), 99, dtype=torch.uint8)
            other = queue.submit(beside, torch.empty(8 * 16, 8), Deadline())
            at = 0
            while at < len(order):
                step = steps[at % len(steps)]
                incoming.add(order[at : at + step])
                at += step
            incoming.add([], Ending())
            kept = task.result()
            other.result()
        assert kept is not None and torch.equal(kept, out)
        assert out[::16, 0].tolist() == list(range(24))
    finally:
        queue.close()


def test_a_short_video_does_not_wait_for_one_that_is_still_being_decoded() -> None:
    tower = LabTower()
    queue = TowerQueue(tower)
    try:
        with FrameBuffer() as buffer:
            buffer.reserve(64)
            slow = IncomingFrames(buffer, 64)
            waiting = queue.submit(slow, torch.empty(64 * 16, 8), Deadline())
            slow.add([0])
            queue.submit(torch.zeros((4, 3, 448, 448), dtype=torch.uint8), torch.empty(64, 8), Deadline()).result()
            assert not waiting.done.is_set()
            slow.add([], Ending(fault=Fault(ErrorCode.INVALID_ARGUMENT, "cut off")))
            with pytest.raises(Exception, match="cut off"):
                waiting.result()
    finally:
        queue.close()


def test_a_device_without_memory_is_a_fault_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = LabTower()
    queue = TowerQueue(tower)

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    frames = torch.zeros((4, 3, 448, 448), dtype=torch.uint8)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(tower, "embed_chunk", full)
            with pytest.raises(ServingError, match="no memory left") as caught:
                queue.submit(frames, torch.empty(64, 8), Deadline()).result()
        assert caught.value.code is ErrorCode.UNAVAILABLE
        queue.submit(frames, torch.empty(64, 8), Deadline()).result()  # the next one is served
    finally:
        queue.close()
