"""Three real replicas behind the router: a second question finds its caches, a death costs only what it held."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from internvideo_server.launch import RunningServer, resolve_ports, start
from internvideo_server.launch.router import add, drain, find_haproxy
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, body, figures, text_part, until, video_part
from tests.router_lab import CHAT, NAMES, Router, answers, asking, needs_haproxy, replica_of

pytestmark = [pytest.mark.server, pytest.mark.ci]
VIDEOS, QUESTIONS, FRAMES = 9, 3, 8
SLOW = 120.0  # a start on a busy machine


class Cluster:
    """The replicas by their names, and the router before them."""

    def __init__(self, servers: dict[str, RunningServer], router: Router, media: Path) -> None:
        self.servers, self.router, self.media = servers, router, media

    def video(self, number: int, start: float = 0.0) -> dict[str, Any]:
        """One of nine; `start` makes it another one to the caches."""
        return video_part(self.media / f"of_nine_{number}.mp4", num_frames=FRAMES, start=start + 0.1 * number)

    def ask(self, video: dict[str, Any], turn: int = 0, url: str | None = None, tokens: int = 8) -> tuple[str, str, Any]:
        """The replica that answered, its text, and what it tells of the medium."""
        with asking(url or self.router.url) as http:
            request = body(video, text_part(f"Question {turn}?"), max_tokens=tokens, min_tokens=tokens)
            answer = http.post(CHAT, json=request)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        text: str = document["choices"][0]["message"]["content"]
        media = document["usage"]["internvideo"].get("media")  # a report that comes too late on a busy machine is left out
        return replica_of(answer), text, media and media[0]

    def frames(self) -> dict[str, float]:
        """What the tower of each replica has done."""
        return {name: figures(server).get("internvideo_vision_frames_total", 0.0) for name, server in self.servers.items()}

    def wait_until_whole(self) -> None:
        for name in NAMES:
            until(lambda name=name: self.router.servers()[name].status == "UP", f"{name} is not up", SLOW)  # type: ignore[misc]


@pytest.fixture(scope="module")
def cluster(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    needs_haproxy()
    for number in range(VIDEOS):
        shutil.copy(media_dir / f"v{number % 8}.mp4", media_dir / f"of_nine_{number}.mp4")
    with ExitStack() as stack:
        servers = {}
        for name in NAMES:
            options = ServeSettings(
                checkpoint=checkpoint,
                device="cpu",
                allowed_local_media_path=(media_dir,),
                run_directory=tmp_path_factory.mktemp(name),
                replica_name=name,
                adapter_workers=4 if name == NAMES[0] else 1,
                decode_workers=1,
                **FREE_PORTS,
            )
            servers[name] = stack.enter_context(start(options))
        urls = [f"{name}={server.adapter_url}" for name, server in servers.items()]
        router = stack.enter_context(Router(tmp_path_factory.mktemp("router"), urls))
        yield Cluster(servers, router, media_dir)


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> None:
    cluster.wait_until_whole()


@contextmanager
def round_robin(router: Router, folder: Path) -> Iterator[str]:
    """The same replicas behind a plain balancer."""
    port = resolve_ports({"port": ("127.0.0.1", 0)})["port"]
    lines = (router.directory / "haproxy.cfg").read_text().splitlines()
    text = "\n".join(
        line
        for line in lines
        if not any(words in line for words in ("stats socket", "hash-type", "hash-balance", "use-server", "use_backend"))
    )
    text = text.replace("balance hash var(txn.key)", "balance roundrobin")
    text = text.replace(f"bind 127.0.0.1:{router.settings.port}", f"bind 127.0.0.1:{port}")
    text = text[: text.index("frontend own")] + text[text.index("\nbackend replicas") :]
    configuration = folder / "round_robin.cfg"
    configuration.write_text(text + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(find_haproxy()), "-db", "-f", str(configuration)], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}"), "haproxy did not start")
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_later_questions_find_their_caches_and_with_round_robin_they_do_not(cluster: Cluster, tmp_path: Path) -> None:
    def run(begin: float, url: str | None = None) -> tuple[float, int]:
        """Frames that the towers worked on, and later questions that found none of theirs."""
        before, cold = sum(cluster.frames().values()), 0
        for turn in range(QUESTIONS):
            for place in range(VIDEOS):
                number = (place + turn) % VIDEOS  # else nine videos would meet three replicas in the same order each time
                _, _, medium = cluster.ask(cluster.video(number, begin), turn, url)
                assert medium["frames"] == FRAMES
                cold += turn > 0 and medium["cached_frames"] == 0
        return sum(cluster.frames().values()) - before, cold

    assert run(0.0) == (VIDEOS * FRAMES, 0)
    with round_robin(cluster.router, tmp_path) as url:
        frames, cold = run(0.5, url)
    assert frames >= 2 * VIDEOS * FRAMES and cold > 0


def test_files_and_responses_are_shared_by_the_processes_of_their_replica(cluster: Cluster) -> None:
    content = (cluster.media / "v1.mp4").read_bytes()
    with asking(cluster.router.url) as http:
        while True:
            file = http.post("/v1/files", files={"file": ("v1.mp4", content)}, data={"purpose": "vision"})
            if replica_of(file) == NAMES[0]:  # it has four processes
                break
    video = {"type": "input_video", "video_url": f"file-id:{file.json()['id']}", "num_frames": FRAMES}
    before, previous = cluster.frames(), None
    for turn in range(6):
        with asking(cluster.router.url) as http:  # a connection of its own: another process
            items = [{"role": "user", "content": [*[video] * (turn == 0), {"type": "input_text", "text": f"Question {turn}?"}]}]
            request = {"model": "InternVideo2_5", "input": items, "previous_response_id": previous, "max_output_tokens": 4}
            answer = http.post("/v1/responses", json=request)
            assert replica_of(answer) == NAMES[0]
            previous = answer.json()["id"]
            assert (
                http.get(f"/v1/responses/{previous}").status_code == http.get(f"/v1/files/{file.json()['id']}").status_code == 200
            )
    after = cluster.frames()
    assert {name: after[name] - before[name] for name in NAMES} == {NAMES[0]: FRAMES, NAMES[1]: 0, NAMES[2]: 0}


def in_flight(server: RunningServer) -> float:
    """Requests at work in its adapter and its engine."""
    with asking(server.adapter_url) as http:
        page = http.get("/metrics").text
    adapter = sum(float(line.split()[1]) for line in page.splitlines() if line.startswith("internvideo_requests_in_flight "))
    triton = httpx2.get(server.metrics_url, trust_env=False).text
    engine = sum(
        float(line.split()[-1])
        for line in triton.splitlines()
        if line.startswith("nv_trt_llm_request_metrics") and 'request_type="active"' in line
    )
    return adapter + engine


def test_clients_that_leave_end_their_work_in_every_replica(cluster: Cluster) -> None:
    with ExitStack() as stack:
        seen, streams = set(), []
        for number in range(6):
            http = stack.enter_context(asking(cluster.router.url))
            request = body(cluster.video(number), text_part("Story?"), max_tokens=5000, min_tokens=5000, stream=True)
            answer = stack.enter_context(http.stream("POST", CHAT, json=request))
            assert answer.status_code == 200, answer.read()
            seen.add(answer.headers["x-internvideo-replica"])
            streams.append(answer.iter_lines())  # kept: one that is forgotten is closed
            next(streams[-1])
            at_work = cluster.servers[answer.headers["x-internvideo-replica"]]
            until(lambda server=at_work: in_flight(server) > 0, "it was not at work")  # type: ignore[misc]
        assert len(seen) > 1
    until(lambda: not any(map(in_flight, cluster.servers.values())), "work went on for clients that had left")


class Stream:
    """A streamed answer, read by a thread; what came, and whether it was cut off."""

    def __init__(self, cluster: Cluster, video: dict[str, Any], tokens: int) -> None:
        self.events: list[str] = []
        self.replica = ""
        self._cluster, self._request = (
            cluster,
            body(video, text_part("Story?"), max_tokens=tokens, min_tokens=tokens, stream=True),
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        until(lambda: len(self.events) > 3 or not self._thread.is_alive(), "no token came")

    def _read(self) -> None:
        with asking(self._cluster.router.url) as http, http.stream("POST", CHAT, json=self._request) as stream:
            self.replica = stream.headers["x-internvideo-replica"]
            with suppress(httpx2.TransportError):
                self.events.extend(line[6:] for line in stream.iter_lines() if line.startswith("data: "))

    def result(self) -> str:
        """``whole``, ``error`` (told in an event) or ``cut``."""
        self._thread.join(SLOW)
        assert not self._thread.is_alive()
        if any("error" in json.loads(event) for event in self.events if event != "[DONE]"):
            return "error"
        return "whole" if self.events[-1:] == ["[DONE]"] else "cut"


def process_of(server: RunningServer, name: str) -> psutil.Process:
    return next(p for pid in server.processes() if (p := psutil.Process(pid)).name() == name)


def test_a_killed_triton_costs_no_answer_and_only_its_keys_move(cluster: Cluster) -> None:
    before = [cluster.ask(cluster.video(number)) for number in range(VIDEOS)]
    victim = before[0][0]
    stream = Stream(cluster, cluster.video(0), 3000)
    assert stream.replica == victim
    process_of(cluster.servers[victim], "tritonserver").kill()
    during = [cluster.ask(cluster.video(number)) for number in range(VIDEOS)]
    assert [text for _, text, _ in during] == [text for _, text, _ in before]
    moved = {old for (old, _, _), (new, _, _) in zip(before, during, strict=True) if old != new}
    assert moved <= {victim}
    assert stream.result() == "error"
    cluster.wait_until_whole()
    after = [cluster.ask(cluster.video(number)) for number in range(VIDEOS)]
    assert [(name, text) for name, text, _ in after] == [(name, text) for name, text, _ in before]


def test_a_drain_under_load_cuts_nothing_and_a_replica_joins_under_load(cluster: Cluster) -> None:
    before = [cluster.ask(cluster.video(number))[:2] for number in range(VIDEOS)]
    victim = before[0][0]
    failures: list[str] = []
    stop = threading.Event()

    def load(offset: int) -> None:
        number = offset
        while not stop.is_set():
            number = (number + 1) % VIDEOS
            text = cluster.ask(cluster.video(number))[1]
            if text != before[number][1]:
                failures.append(text)

    threads = [threading.Thread(target=load, args=(offset,)) for offset in (0, 4)]
    stream = Stream(cluster, cluster.video(0), 200)
    for thread in threads:
        thread.start()
    try:
        assert stream.replica == victim
        assert drain(cluster.router.directory, victim, SLOW) == 0
        assert stream.result() == "whole"
        total = cluster.router.servers()[victim].total
        assert cluster.ask(cluster.video(0))[0] != victim and cluster.router.servers()[victim].total == total
        add(cluster.router.directory, f"{victim}={cluster.servers[victim].adapter_url}")
        until(lambda: cluster.router.servers()[victim].total > total, "it got nothing again")
    finally:
        stop.set()
        for thread in threads:
            thread.join(SLOW)
    assert failures == []
    assert [cluster.ask(cluster.video(number))[:2] for number in range(VIDEOS)] == before


def test_a_replica_whose_processes_are_all_killed_costs_only_what_it_held(cluster: Cluster) -> None:
    """The last one: it does not come back."""
    before = [cluster.ask(cluster.video(number)) for number in range(VIDEOS)]
    victim = before[0][0]
    with asking(cluster.router.url) as http:
        while True:
            file = http.post("/v1/files", files={"file": ("a.mp4", b"x")}, data={"purpose": "vision"})
            if replica_of(file) == victim:
                break
    results: dict[int, tuple[str, str, Any]] = {}

    def ask(number: int) -> None:
        results[number] = cluster.ask(cluster.video(number), turn=7, tokens=300)  # which takes a while

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(VIDEOS)]
    for thread in threads:
        thread.start()
    until(lambda: in_flight(cluster.servers[victim]) > 0, "it was not asked")
    for pid in cluster.servers[victim].processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(SLOW)
    assert len(results) == VIDEOS  # each of them with status 200
    during = [cluster.ask(cluster.video(number)) for number in range(VIDEOS)]
    assert victim not in {name for name, _, _ in during}
    assert [text for _, text, _ in during] == [text for _, text, _ in before]
    assert {old for (old, _, _), (new, _, _) in zip(before, during, strict=True) if old != new} == {victim}
    with asking(cluster.router.url) as http:
        answer = http.get(f"/v1/files/{file.json()['id']}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
