"""Memory bounded in bytes, work that is shared, and values that are held for a request on its way."""

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_server.cache import ByteLru, Flights, LeaseBook, LeaseClient, LeaseServer, TicketBook, socket_name
from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.media import Budget
from internvideo_server.metrics import Meter
from internvideo_server.video import FrameBuffer
from tests.asking import until

A, B = b"a" * 32, b"b" * 32
FAR = 3600.0


def key(number: int) -> bytes:
    return bytes([number]) * 32


# ---- bytes


@given(st.integers(0, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 12)), max_size=60))
def test_the_least_recently_used_makes_room_and_the_bound_holds(capacity: int, steps: list[tuple[bool, int, int]]) -> None:
    cache: ByteLru[int] = ByteLru("test", capacity, Meter())
    model: OrderedDict[int, int] = OrderedDict()  # key -> size
    for put, number, size in steps:
        if put:
            cache.put(key(number), number, size)
            if size <= capacity and number not in model:
                model[number] = size
                while sum(model.values()) > capacity:
                    model.popitem(last=False)
        else:
            assert cache.get(key(number)) == (number if number in model else None)
            if number in model:
                model.move_to_end(number)
        assert cache.size == sum(model.values()) <= capacity


def test_what_was_asked_for_last_stays() -> None:
    cache: ByteLru[int] = ByteLru("test", 2, Meter())
    cache.put(key(1), 1, 1)
    cache.put(key(2), 2, 1)
    assert cache.get(key(1)) == 1
    cache.put(key(3), 3, 1)
    assert [cache.get(key(number)) for number in (1, 2, 3)] == [1, None, 3]


def test_hits_misses_evictions_and_bytes_are_counted() -> None:
    meter = Meter()
    cache: ByteLru[str] = ByteLru("test", 10, meter)
    assert cache.get(A) is None
    cache.put(A, "a", 6)
    assert cache.get(A) == "a"
    cache.put(B, "b", 6)
    assert cache.get(A, count=False) is None
    figures = {name: meter.value(f"internvideo_cache_{name}", cache="test") for name in ("hits_total", "misses_total", "bytes")}
    assert figures == {"hits_total": 1, "misses_total": 1, "bytes": 6}
    assert meter.value("internvideo_cache_evictions_total", cache="test") == 1


# ---- shared work


class Work:
    """Work that ends when it is told to, or when its budget says so."""

    def __init__(self) -> None:
        self.runs = 0
        self.started, self.finish, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, budget: Budget) -> str:
        self.runs += 1
        self.started.set()
        try:
            while not self.finish.wait(0.005):
                budget.check("working")
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


def joined(flights: Flights[str], count: int) -> bool:
    return any(len(flight.waiting) == count for flight in flights._flights.values())


def test_two_requests_for_the_same_do_the_work_once() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    threads = [in_thread(lambda: flights.run(A, Budget(), work)) for _ in range(5)]
    wait_for(lambda: joined(flights, 5))
    work.finish.set()
    for thread, results in threads:
        thread.join(30)
        assert results == ["done"]
    assert work.runs == 1


def test_the_others_get_their_result_when_the_one_that_works_is_cancelled() -> None:
    flights: Flights[str] = Flights()
    work, gone = Work(), threading.Event()
    leader, cancelled = in_thread(lambda: flights.run(A, Budget(cancelled=gone), work))
    assert work.started.wait(30)
    follower, results = in_thread(lambda: flights.run(A, Budget(), work))
    wait_for(lambda: joined(flights, 2))
    gone.set()
    assert not work.ended.wait(0.1)  # it goes on: the flight's budget is of all who wait
    work.finish.set()
    leader.join(30)
    follower.join(30)
    assert (cancelled, results, work.runs) == ([ErrorCode.CANCELLED], ["done"], 1)


def test_a_waiting_request_that_is_cancelled_goes_at_once() -> None:
    flights: Flights[str] = Flights()
    work, gone = Work(), threading.Event()
    leader, done = in_thread(lambda: flights.run(A, Budget(), work))
    assert work.started.wait(30)
    follower, results = in_thread(lambda: flights.run(A, Budget(cancelled=gone), work))
    late, too_late = in_thread(lambda: flights.run(A, Budget.seconds(0.05), work))
    gone.set()
    follower.join(30)
    late.join(30)
    assert (results, too_late, done) == ([ErrorCode.CANCELLED], [ErrorCode.DEADLINE_EXCEEDED], [])
    work.finish.set()
    leader.join(30)
    assert done == ["done"]


def test_work_that_nobody_waits_for_ends() -> None:
    flights: Flights[str] = Flights()
    work, gone = Work(), threading.Event()
    threads = [in_thread(lambda: flights.run(A, Budget(cancelled=gone), work)) for _ in range(3)]
    wait_for(lambda: joined(flights, 3))
    gone.set()
    for thread, results in threads:
        thread.join(30)
        assert results == [ErrorCode.CANCELLED]
    assert flights._flights == {}


def test_an_error_is_everybodys_and_the_next_request_tries_again() -> None:
    flights: Flights[str] = Flights()

    def fails(budget: Budget) -> str:
        raise invalid("damaged")

    with pytest.raises(ServingError, match="damaged"):
        flights.run(A, Budget(), fails)
    assert flights.run(A, Budget(), lambda budget: "done") == "done"


# ---- leases


def book(capacity: int = 100) -> tuple[ByteLru[str], LeaseBook[str]]:
    cache: ByteLru[str] = ByteLru("test", capacity, Meter())
    return cache, LeaseBook(cache, len)


def test_what_was_promised_is_there_whatever_the_cache_evicts_meanwhile() -> None:
    cache, leases = book(capacity=10)
    cache.put(A, "embedding", 9)
    assert leases.grant(1, "request", [A, B], time.monotonic() + FAR) == [True, False]
    cache.put(B, "another 9", 9)
    assert cache.get(A) is None
    assert leases.take(1) == {A: "embedding"}
    assert leases.take(1) == {}


def test_a_lease_ends_with_its_deadline_and_with_a_stop() -> None:
    cache, leases = book()
    cache.put(A, "embedding", 9)
    leases.grant(1, "expired", [A], time.monotonic())
    leases.grant(2, "stopped", [A], time.monotonic() + FAR)
    leases.grant(3, "waiting", [A], time.monotonic() + FAR)
    leases.stop("stopped")
    assert len(leases) == 1
    assert (leases.take(1), leases.take(2), leases.take(3)) == ({}, {}, {A: "embedding"})


def test_leases_hold_no_more_than_the_cache_may() -> None:
    cache, leases = book(capacity=10)
    for number in range(3):
        cache.put(key(number), "x" * 8 + str(number), 9)
        held = leases.grant(number, "", [key(number)], time.monotonic() + FAR)
        assert held == [number == 0]  # the first one's memory is still held
        assert leases.grant(100 + number, "", [key(0)], time.monotonic() + FAR) == [number == 0]


def test_a_cache_of_no_size_promises_nothing() -> None:
    cache, leases = book(capacity=0)
    cache.put(A, "embedding", 9)
    assert leases.grant(1, "", [A], time.monotonic() + FAR) == [False]


# ---- over the socket


def test_the_question_crosses_processes() -> None:
    cache, leases = book()
    cache.put(A, "embedding", 9)
    name = f"\0internvideo-test-{os.getpid()}"
    server, client = LeaseServer(leases, TicketBook(), name), LeaseClient(name)
    try:
        ticket, held = client.lease("request", [A, B], time.monotonic() + FAR)
        assert (held, leases.take(ticket)) == ({A}, {A: "embedding"})
        assert client.lease("request", [B], time.monotonic() + FAR) == (0, set())
        ticket, _ = client.lease("request", [A], time.monotonic() + FAR)
        client.drop(ticket)
        assert len(leases) == 0
    finally:
        server.close()
        server.close()
    assert client.lease("request", [A], time.monotonic() + FAR) == (0, set())


def test_frames_cross_processes_by_their_descriptor() -> None:
    _, leases = book()
    parcels: TicketBook[FrameBuffer] = TicketBook(1)
    name = f"\0internvideo-test-{os.getpid()}"
    server, client = LeaseServer(leases, parcels, name), LeaseClient(name)
    try:
        with FrameBuffer() as buffer:
            os.write(buffer.fd, bytes(3 * 448 * 448) + b"\7" * 3 * 448 * 448)
            buffer.frame_count = 2
            ticket = client.give(0, "request", {A: buffer}, time.monotonic() + FAR)
        assert ticket
        assert client.give(0, "another", {A: FrameBuffer()}, time.monotonic() + FAR) == 0  # there is no room
        [got] = parcels.take(ticket).values()
        frame = np.empty((1, 3, 448, 448), np.uint8)
        got.read(1, frame)
        assert (frame == 7).all()
        with pytest.raises(OSError, match="frame 2 is not in the buffer"):
            got.read(2, frame)
        memory = os.fstat(got.fd).st_ino
        del got
        assert memory not in open_inodes()
        assert client.give(0, "", {}, time.monotonic() + FAR) == 0
        ticket = client.give(77, "", {A: FrameBuffer()}, time.monotonic() + FAR)
        assert ticket == 77
    finally:
        server.close()
    assert client.give(0, "request", {A: FrameBuffer()}, time.monotonic() + FAR) == 0


def open_inodes() -> set[int]:
    inodes = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.fstat(int(number)).st_ino)
    return inodes


def test_strangers_and_nonsense_do_not_stop_the_server() -> None:
    import socket

    cache, leases = book()
    cache.put(A, "embedding", 9)
    name = f"\0internvideo-test-{os.getpid()}"
    server = LeaseServer(leases, TicketBook(), name)
    try:
        for nonsense in (b"", b"{", b'{"keys": 3}', b'{"keys": ["zz"]}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.connect(name)
                stranger.send(nonsense) if nonsense else None
        assert LeaseClient(name).lease("", [A], time.monotonic() + FAR)[1] == {A}
    finally:
        server.close()


def test_a_time_without_free_descriptors_does_not_stop_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    cache, leases = book()
    cache.put(A, "embedding", 9)
    accept = socket.socket.accept

    def full(listener: socket.socket) -> None:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", full)
    name = f"\0internvideo-test-{os.getpid()}"
    server = LeaseServer(leases, TicketBook(), name)
    try:
        until(lambda: LeaseClient(name).lease("", [A], time.monotonic() + FAR)[1] == {A}, "the server is gone")
    finally:
        server.close()


def test_the_models_of_one_server_find_each_other_by_their_parent() -> None:
    assert socket_name() == f"\0internvideo-vit-{os.getppid()}"
