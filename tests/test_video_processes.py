"""Decoder processes that die, hang or are no longer wanted, and a server that does."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.preprocessing.video import FrameDecoder
from internvideo_server.preprocessing.video._forks import find_python
from tests.video_decoding import DATA, V0, V1, decode, ready_pids, refusal


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(1) as decoder:
        yield decoder


def test_a_killed_idle_worker_costs_one_request(decoder: FrameDecoder) -> None:
    os.kill(ready_pids(decoder)[0], signal.SIGKILL)
    with pytest.raises(ServingError, match="SIGKILL") as caught:
        decode(decoder, V0)
    assert caught.value.code is ErrorCode.INTERNAL
    assert decode(decoder, V0)[0].frame_count == 8


def hang(decoder: FrameDecoder) -> None:
    """Make the only worker take its job and never answer."""
    os.kill(ready_pids(decoder)[0], signal.SIGSTOP)


class Wish:
    """A cancel flag that tells when a worker has the job: it is looked at once before and often during the work."""

    def __init__(self) -> None:
        self.looks = 0
        self.working, self.cancelled = threading.Event(), threading.Event()

    def is_set(self) -> bool:
        self.looks += 1
        if self.looks > 1:
            self.working.set()
        return self.cancelled.is_set()


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def code_of(errors: list[BaseException]) -> ErrorCode:
    (error,) = errors
    assert isinstance(error, ServingError)
    return error.code


def test_a_worker_killed_at_work_costs_one_request(decoder: FrameDecoder) -> None:
    hang(decoder)
    pid, wish = ready_pids(decoder)[0], Wish()
    thread, errors = in_thread(lambda: decode(decoder, V0, deadline=Deadline(cancelled=wish.is_set)))
    assert wish.working.wait(10)
    os.kill(pid, signal.SIGKILL)
    thread.join(10)
    assert code_of(errors) is ErrorCode.INTERNAL
    assert decode(decoder, V0)[0].frame_count == 8


def test_a_cancel_ends_the_work_within_half_a_second(decoder: FrameDecoder) -> None:
    hang(decoder)
    pid, wish = ready_pids(decoder)[0], Wish()
    thread, errors = in_thread(lambda: decode(decoder, V0, deadline=Deadline(cancelled=wish.is_set)))
    assert wish.working.wait(10)
    before = time.monotonic()
    wish.cancelled.set()
    thread.join(10)
    assert time.monotonic() - before < 0.5
    assert code_of(errors) is ErrorCode.CANCELLED
    assert not psutil.pid_exists(pid)
    assert decode(decoder, V0)[0].frame_count == 8


def test_a_deadline_ends_the_work(decoder: FrameDecoder) -> None:
    hang(decoder)
    with pytest.raises(ServingError) as caught:
        decode(decoder, V0, deadline=Deadline.after(0.1))
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert decode(decoder, V0)[0].frame_count == 8


def test_waiting_for_a_worker_ends_with_the_deadline(decoder: FrameDecoder) -> None:
    hang(decoder)
    wish = Wish()
    first, first_errors = in_thread(lambda: decode(decoder, V0, deadline=Deadline(cancelled=wish.is_set)))
    assert wish.working.wait(10)
    with pytest.raises(ServingError) as caught:
        decode(decoder, V0, deadline=Deadline.after(0.2))
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    wish.cancelled.set()
    first.join(10)
    assert code_of(first_errors) is ErrorCode.CANCELLED


def test_closing_ends_busy_workers_and_their_requests() -> None:
    decoder = FrameDecoder(2)
    pids = ready_pids(decoder)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threads = [in_thread(lambda: decode(decoder, V0)) for _ in range(3)]
    before = time.monotonic()
    decoder.close()
    for thread, _ in threads:
        thread.join(10)
    assert time.monotonic() - before < 1
    assert [code_of(errors) for _, errors in threads] == [ErrorCode.CANCELLED] * 3
    assert not any(map(psutil.pid_exists, pids))
    decoder.close()
    with pytest.raises(ServingError):
        decode(decoder, V0)


def test_many_requests_share_the_workers() -> None:
    clips = [DATA / f"v{i}.mp4" for i in range(8)]
    seen: dict[Path, set[bytes]] = {clip: set() for clip in clips}

    def work(decoder: FrameDecoder, clip: Path) -> None:
        seen[clip].add(decode(decoder, clip)[1].tobytes())

    with FrameDecoder(2) as decoder:
        threads = [in_thread(lambda clip=clip: work(decoder, clip)) for clip in clips * 2]  # type: ignore[misc]
        for thread, errors in threads:
            thread.join(60)
            assert not errors
    assert all(len(found) == 1 for found in seen.values())
    assert len(set.union(*seen.values())) == 8


PARENT = """
import sys, threading
from internvideo_server.preprocessing.media import Media, MediaPolicy
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.video import DecodeRequest, FrameDecoder
decoder = FrameDecoder(2)
print(*decoder.worker_pids, flush=True)
medium = Media.from_chunks([open(sys.argv[1], "rb").read()], MediaPolicy(), None)
while True:
    with FrameBuffer() as buffer:
        decoder.decode(medium.fd, DecodeRequest(), buffer)
"""


def test_workers_end_with_a_killed_server_and_leave_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(DATA / "v7.mp4")], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline()
            (fork_server,) = psutil.Process(parent.pid).children()
            workers, mapped = [], set()
            for process in (fork_server, *fork_server.children()):
                with contextlib.suppress(psutil.NoSuchProcess):  # a decoder ends with its medium
                    mapped |= {area.path for area in process.memory_maps()}
                    workers.append(process)
        finally:
            parent.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]  # nobody may reap orphans here
    assert not [path for path in mapped if path.startswith("/dev/shm")]  # nothing with a name, so nothing can stay


def test_nothing_stays_open_after_requests(decoder: FrameDecoder) -> None:
    def open_files() -> tuple[int, ...]:
        (worker,) = (psutil.Process(pid) for pid in ready_pids(decoder))
        return len(os.listdir("/proc/self/fd")), worker.parent().num_fds(), worker.num_fds()

    decode(decoder, V0)
    before = open_files()
    decode(decoder, V1)
    refusal(decoder, b"text")
    assert open_files() == before


def test_each_medium_has_a_process_of_its_own_and_none_stays(decoder: FrameDecoder) -> None:
    seen = set()
    for _ in range(3):
        (pid,) = ready_pids(decoder)
        seen.add(pid)
        decode(decoder, V0)
    (parent,) = (psutil.Process(pid).parent() for pid in ready_pids(decoder))
    assert len(seen) == 3
    assert [child.pid for child in parent.children()] == decoder.worker_pids


def test_a_killed_fork_server_costs_one_request_at_most(decoder: FrameDecoder) -> None:
    (worker,) = (psutil.Process(pid) for pid in ready_pids(decoder))
    parent = worker.parent()
    parent.kill()
    with contextlib.suppress(ServingError):
        decode(decoder, V0)
    assert decode(decoder, V0)[0].frame_count == 8
    psutil.wait_procs([parent, worker], timeout=5)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_python_program_is_found_where_the_executable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/tritonserver/backends/python/triton_python_backend_stub")
    found = find_python()
    assert os.path.samefile(found, os.path.join(sys.prefix, "bin", "python3"))
    monkeypatch.setattr(sys, "executable", "")
    assert find_python() == found
    with FrameDecoder(1) as decoder:
        assert decode(decoder, V0)[0].frame_count == 8


def test_a_python_that_cannot_run_the_worker_is_told_at_start() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        FrameDecoder(2, python="/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        FrameDecoder(1, python="/no/such/python")
