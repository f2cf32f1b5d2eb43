"""Memory bounded in bytes, work that is shared, and values that are held for a request on its way."""

import contextlib
import errno
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_server.cache import ByteLru, SingleFlight
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.handoff import (
    Ending,
    FramePart,
    HandoffClient,
    HandoffServer,
    IncomingFrames,
    Reservations,
    Reserved,
)
from internvideo_server.metrics import Meter
from tests.asking import until

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
FAR = 3600.0


def key(number: int) -> bytes:
    return bytes([number]) * 32


# ---- bytes


@given(st.integers(0, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 12)), max_size=60))
def test_the_least_recently_used_makes_room_and_the_bound_holds(capacity: int, steps: list[tuple[bool, int, int]]) -> None:
    cache: ByteLru[tuple[int, int]] = ByteLru("test", capacity, lambda value: value[1], Meter())
    model: OrderedDict[int, int] = OrderedDict()  # key -> size
    for put, number, size in steps:
        if put:
            cache.put(key(number), (number, size))
            if size <= capacity and number not in model:
                model[number] = size
                while sum(model.values()) > capacity:
                    model.popitem(last=False)
        else:
            assert cache.get(key(number)) == ((number, model[number]) if number in model else None)
            if number in model:
                model.move_to_end(number)
        assert cache.size == sum(model.values()) <= capacity


def test_what_was_asked_for_last_stays() -> None:
    cache: ByteLru[int] = ByteLru("test", 2, lambda value: 1, Meter())
    cache.put(key(1), 1)
    cache.put(key(2), 2)
    assert cache.get(key(1)) == 1
    cache.put(key(3), 3)
    assert [cache.get(key(number)) for number in (1, 2, 3)] == [1, None, 3]


def test_hits_misses_evictions_and_bytes_are_counted() -> None:
    meter = Meter()
    cache: ByteLru[str] = ByteLru("test", 10, len, meter)
    assert cache.get(A) is None
    cache.put(A, "a" * 6)
    assert cache.get(A) == "a" * 6
    cache.put(B, "b" * 6)
    assert cache.get(A, count=False) is None
    assert [meter.value(f"internvideo_cache_{name}", cache="test") for name in ("hits_total", "bytes")] == [1, 6]
    assert meter.value("internvideo_cache_evictions_total", cache="test") == 1


def test_a_miss_is_new_or_evicted_or_too_large() -> None:
    meter = Meter()
    cache: ByteLru[str] = ByteLru("test", 10, len, meter)

    def misses() -> dict[str, float]:
        kinds = ("new", "evicted", "too_large")
        return {kind: meter.value("internvideo_cache_misses_total", cache="test", kind=kind) for kind in kinds}

    assert cache.get(A) is None
    cache.put(A, "a" * 6)
    cache.put(B, "b" * 6)
    assert cache.get(A) is None
    cache.put(A, "a" * 6)
    cache.halve()
    assert cache.get(A) is None
    assert misses() == {"new": 1, "evicted": 2, "too_large": 0}
    cache.put(C, "c" * 11)
    assert cache.get(C) is None
    assert misses() == {"new": 1, "evicted": 2, "too_large": 1}


def test_what_was_evicted_long_ago_is_new_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvideo_server.cache._lru._REMEMBERED", 2)
    meter = Meter()
    cache: ByteLru[str] = ByteLru("test", 1, len, meter)
    for number in range(5):
        cache.put(key(number), "x")
    assert cache.get(key(0)) is cache.get(key(3)) is None
    assert [meter.value("internvideo_cache_misses_total", cache="test", kind=kind) for kind in ("new", "evicted")] == [1, 1]


# ---- shared work


class Work:
    """Work that ends when it is told to, or when its deadline says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.started, self.finish, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, deadline: Deadline) -> str:
        self.runs += 1
        self.started.set()
        try:
            while not self.finish.wait(0.005):
                deadline.check("working")
        finally:
            self.ended.set()
        return "done"


def in_thread(work: Callable[[], str]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except ServingError as error:
            results.append(error.code)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def joined(flights: SingleFlight[str], count: int) -> bool:
    return any(len(flight.waiters) == count for flight in flights._flights.values())


def test_two_requests_for_the_same_do_the_work_once() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    threads = [in_thread(lambda: flights.run(A, Deadline(), work, "waiting")) for _ in range(5)]
    wait_for(lambda: joined(flights, 5))
    work.finish.set()
    for thread, results in threads:
        thread.join(30)
        assert results == ["done"]
    assert work.runs == 1


def test_the_others_get_their_result_when_the_one_that_works_is_cancelled() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work, gone = Work(), threading.Event()
    leader, cancelled = in_thread(lambda: flights.run(A, Deadline(cancelled=gone.is_set), work, "waiting"))
    assert work.started.wait(30)
    follower, results = in_thread(lambda: flights.run(A, Deadline(), work, "waiting"))
    wait_for(lambda: joined(flights, 2))
    gone.set()
    assert not work.ended.wait(0.1)  # it goes on: the flight's deadline is of all who wait
    work.finish.set()
    leader.join(30)
    follower.join(30)
    assert (cancelled, results, work.runs) == ([ErrorCode.CANCELLED], ["done"], 1)


def test_a_waiting_request_that_is_cancelled_goes_at_once() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work, gone = Work(), threading.Event()
    leader, done = in_thread(lambda: flights.run(A, Deadline(), work, "waiting"))
    assert work.started.wait(30)
    follower, results = in_thread(lambda: flights.run(A, Deadline(cancelled=gone.is_set), work, "waiting"))
    late, too_late = in_thread(lambda: flights.run(A, Deadline.after(0.05), work, "waiting"))
    gone.set()
    follower.join(30)
    late.join(30)
    assert (results, too_late, done) == ([ErrorCode.CANCELLED], [ErrorCode.DEADLINE_EXCEEDED], [])
    work.finish.set()
    leader.join(30)
    assert done == ["done"]


def test_work_that_nobody_waits_for_ends() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work, gone = Work(), threading.Event()
    threads = [in_thread(lambda: flights.run(A, Deadline(cancelled=gone.is_set), work, "waiting")) for _ in range(3)]
    wait_for(lambda: joined(flights, 3))
    gone.set()
    for thread, results in threads:
        thread.join(30)
        assert results == [ErrorCode.CANCELLED]
    assert flights._flights == {}


def test_an_error_is_everybodys_and_the_next_request_tries_again() -> None:
    flights: SingleFlight[str] = SingleFlight()

    def fails(deadline: Deadline) -> str:
        raise invalid("damaged")

    with pytest.raises(ServingError, match="damaged"):
        flights.run(A, Deadline(), fails, "waiting")
    assert flights.run(A, Deadline(), lambda deadline: "done", "waiting") == "done"


# ---- reservations


def test_half_of_a_cache_can_be_given_back() -> None:
    cache: ByteLru[str] = ByteLru("test", 10, len, Meter())
    for letter in "abcde":
        cache.put(letter.encode(), 2 * letter)
    cache.get(b"a")
    cache.halve()
    assert cache.size == 4
    assert [cache.get(letter.encode()) for letter in "abcde"] == ["aa", None, None, None, "ee"]


def book(capacity: int = 100, most_with_frames: float = 1) -> tuple[ByteLru[str], Reservations[str]]:
    cache: ByteLru[str] = ByteLru("test", capacity, len, Meter())
    return cache, Reservations(cache, most_with_frames)


def test_what_was_promised_is_there_whatever_the_cache_evicts_meanwhile() -> None:
    cache, reservations = book(capacity=10)
    cache.put(A, "embedding")
    assert reservations.hold_embeddings(1, "request", time.monotonic() + FAR, [A, B]) == {A}
    cache.put(B, "another 9")
    assert cache.get(A) is None
    assert reservations.claim(1).embeddings == {A: "embedding"}
    assert reservations.claim(1) == Reserved()


def test_a_reservation_ends_with_its_deadline_and_with_a_stop() -> None:
    cache, reservations = book()
    cache.put(A, "embedding")
    reservations.hold_embeddings(1, "expired", time.monotonic(), [A])
    reservations.hold_embeddings(2, "stopped", time.monotonic() + FAR, [A])
    reservations.hold_frames(2, "stopped", time.monotonic() + FAR, {B: FrameBuffer()})
    reservations.hold_embeddings(3, "waiting", time.monotonic() + FAR, [A])
    reservations.cancel("stopped")
    assert len(reservations) == 1
    claimed = [reservations.claim(number) for number in (1, 2, 3)]
    assert [(each.embeddings, each.frames) for each in claimed] == [({}, {}), ({}, {}), ({A: "embedding"}, {})]


def test_reservations_hold_no_more_than_the_cache_may() -> None:
    cache, reservations = book(capacity=10)
    for number in range(3):
        cache.put(key(number), "x" * 8 + str(number))
        held = reservations.hold_embeddings(number, "", time.monotonic() + FAR, [key(number)])
        assert bool(held) == (number == 0)  # the first one's memory is still held
        assert bool(reservations.hold_embeddings(100 + number, "", time.monotonic() + FAR, [key(0)])) == (number == 0)


def test_a_cache_of_no_size_promises_nothing() -> None:
    cache, reservations = book(capacity=0)
    cache.put(A, "embedding")
    assert reservations.hold_embeddings(1, "", time.monotonic() + FAR, [A]) == set()


# ---- over the socket


@pytest.fixture
def handoff_id() -> str:
    return secrets.token_hex(16)


def test_the_question_crosses_processes(handoff_id: str) -> None:
    cache, reservations = book()
    cache.put(A, "embedding")
    server, client = HandoffServer(reservations, handoff_id), HandoffClient(handoff_id)
    try:
        reservation = client.reserve("request", time.monotonic() + FAR)
        assert reservation.hold_embeddings([A, B]) == {A}
        assert reservations.claim(reservation.number).embeddings == {A: "embedding"}
        nothing = client.reserve("request", time.monotonic() + FAR)
        assert (nothing.hold_embeddings([B]), nothing.number) == (set(), 0)
        released = client.reserve("request", time.monotonic() + FAR)
        released.hold_embeddings([A])
        released.release()
        assert (len(reservations), released.number) == (0, 0)
    finally:
        server.close()
        server.close()
    late = client.reserve("request", time.monotonic() + FAR)
    assert (late.hold_embeddings([A]), late.number) == (set(), 0)


def ready(count: int = 4) -> FrameBuffer:
    buffer = FrameBuffer()
    buffer.frame_count = count
    return buffer


def whole(key: bytes, buffer: FrameBuffer) -> list[tuple[FramePart, FrameBuffer]]:
    groups = tuple(range(buffer.frame_count // 4))
    return [(FramePart(key, buffer.frame_count, secrets.randbits(32), groups, Ending()), buffer)]


def test_frames_cross_processes_by_their_descriptor(handoff_id: str) -> None:
    cache, reservations = book(most_with_frames=1)
    cache.put(B, "embedding")
    server, client = HandoffServer(reservations, handoff_id), HandoffClient(handoff_id)
    try:
        reservation = client.reserve("request", time.monotonic() + FAR)
        assert reservation.hold_embeddings([B]) == {B}
        with FrameBuffer() as buffer:
            os.write(buffer.fd, bytes(3 * 448 * 448) + b"\7" * 3 * 448 * 448)
            buffer.reserve(4)
            buffer.frame_count = 4
            assert reservation.hold_frames(whole(A, buffer))
        another = client.reserve("another", time.monotonic() + FAR)
        assert (another.hold_frames(whole(A, ready())), another.number) == (False, 0)  # there is no room
        claimed = reservations.claim(reservation.number)
        assert claimed.embeddings == {B: "embedding"}  # both under one number
        [got] = claimed.frames.values()
        assert isinstance(got, IncomingFrames)
        frame = np.empty((1, 3, 448, 448), np.uint8)
        got.read(1, frame)
        assert (frame == 7).all()
        with pytest.raises(OSError, match="frame 4 is not in the buffer"):
            got.read(4, frame)
        memory = os.fstat(got._buffer.fd).st_ino
        del got, claimed
        assert memory not in open_inodes()
        assert not another.hold_frames([])
    finally:
        server.close()
    assert not client.reserve("request", time.monotonic() + FAR).hold_frames(whole(A, ready()))


def open_inodes() -> set[int]:
    inodes = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.fstat(int(number)).st_ino)
    return inodes


def asks(handoff_id: str) -> set[bytes]:
    return HandoffClient(handoff_id).reserve("", time.monotonic() + FAR).hold_embeddings([A])


PART = b'{"kind": "hold frames", "reservation": 1, "request_id": "", "deadline": 9e9, "parts": [%s]}'


def test_strangers_and_nonsense_do_not_stop_the_server(handoff_id: str) -> None:
    cache, reservations = book()
    cache.put(A, "embedding")
    server = HandoffServer(reservations, handoff_id)
    frames = PART % b'{"key": "YWE=", "frame_count": 8, "first": 0, "count": 8}'  # and no descriptor
    nonsense = (b"", b"{", b"[]", b'{"kind": "hold embeddings", "keys": 3}', b'{"kind": "give"}', frames)
    try:
        for message in nonsense:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(f"\0internvideo-{handoff_id}-{os.getppid()}")
                stranger.send(message) if message else None
        assert asks(handoff_id) == {A}
        assert len(reservations) == 1
    finally:
        server.close()


def test_a_time_without_free_descriptors_does_not_stop_the_server(handoff_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, reservations = book()
    cache.put(A, "embedding")
    accept = socket.socket.accept

    def full(listener: socket.socket) -> None:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", full)
    server = HandoffServer(reservations, handoff_id)
    try:
        until(lambda: asks(handoff_id) == {A}, "the server is gone")
    finally:
        server.close()


def test_who_has_another_id_finds_nobody(handoff_id: str) -> None:
    cache, reservations = book()
    cache.put(A, "embedding")
    server = HandoffServer(reservations, handoff_id)
    try:
        assert asks(secrets.token_hex(16)) == set()
        assert asks(handoff_id) == {A}
    finally:
        server.close()
