"""Where a real HAProxy sends requests, before real adapters with a scripted Triton each, while replicas come and go."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Self

import httpx2

from internvideo_server.launch.router import add, drain, remove
from internvideo_server.routing import new_file_id, response_id
from tests.asking import MODEL, until
from tests.fake_triton import Step, piece
from tests.router_lab import CHAT, NAMES, Replicas, Router, asking, replica_of, request, video
from tests.test_routing import forms


def test_every_form_of_a_medium_goes_to_one_replica_and_media_are_spread(router: Router) -> None:
    owners: Counter[str] = Counter()
    with asking(router.url) as http:
        for number in range(24):
            parts = [part for part in forms(f"https://media.example/{number}.mp4") if part["type"] != "image"]
            found = {replica_of(http.post(CHAT, json=request(part))) for part in (parts if number == 0 else parts[:2])}
            assert len(found) == 1
            owners.update(found)
    assert set(owners) == set(NAMES)


def test_two_routers_agree_on_every_key_whatever_the_order_of_their_replicas(
    replicas: Replicas, router: Router, tmp_path: Path
) -> None:
    with Router(tmp_path, replicas.options[:1]) as other:
        for option in reversed(replicas.options[1:]):
            add(other.directory, option)
        for name in NAMES:
            other.wait_for(name, "UP")
        with asking(router.url) as one, asking(other.url) as two:
            for number in range(40):
                body = request(video(f"https://media.example/{number}.mp4"))
                assert replica_of(one.post(CHAT, json=body)) == replica_of(two.post(CHAT, json=body))


def test_files_and_responses_are_found_where_they_are_kept(router: Router) -> None:
    with asking(router.url) as http:
        seen = set()
        for number in range(9):
            file = http.post("/v1/files", files={"file": ("a.mp4", b"x%d" % number)}, data={"purpose": "vision"})
            home, file_id = replica_of(file), file.json()["id"]
            seen.add(home)
            assert replica_of(http.get(f"/v1/files/{file_id}")) == home
            assert http.get(f"/v1/files/{file_id}/content").content == b"x%d" % number
            assert replica_of(http.post(CHAT, json=request(video(f"file-id:{file_id}")))) == home
            part = {"type": "input_video", "video_url": f"file-id:{file_id}"}
            first = http.post("/v1/responses", json={"model": MODEL, "input": [{"role": "user", "content": [part]}]})
            again = {"model": MODEL, "input": "And then?", "previous_response_id": first.json()["id"]}
            assert replica_of(first) == replica_of(http.post("/v1/responses", json=again)) == home
            assert replica_of(http.get(f"/v1/responses/{first.json()['id']}")) == home
            assert replica_of(http.delete(f"/v1/files/{file_id}")) == home
        assert len(seen) > 1


def test_a_session_goes_to_one_replica(router: Router) -> None:
    with asking(router.url, headers={"X-Session-Id": "somebody"}) as http:
        found = {replica_of(http.post(CHAT, json=request(video(f"https://media.example/s{n}.mp4")))) for n in range(8)}
    assert len(found) == 1


def test_what_only_a_replica_that_is_gone_has_is_not_found(replicas: Replicas, router: Router) -> None:
    with asking(router.url) as http:
        file, response = (f"/v1/files/{new_file_id('gone')}", f"/v1/responses/{response_id('gone', '0' * 32)}")
        assert [http.get(path).json()["error"]["code"] for path in (file, response)] == ["file_not_found", "response_not_found"]
        assert http.get(file).status_code == 404
        answer = http.post(CHAT, json=request(video(f"file-id:{new_file_id('gone')}")))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "file_not_found")


def test_a_replica_that_heals_itself_is_waited_for_by_its_files_and_not_by_others(replicas: Replicas, router: Router) -> None:
    with asking(router.url) as http:
        files = [http.post("/v1/files", files={"file": ("a.mp4", b"x")}, data={"purpose": "vision"}) for _ in range(3)]
        file = next(each.json()["id"] for each in files if replica_of(each) == "r-1")
        replicas.fakes["r-1"].dead.add("vit")
        try:
            router.wait_for("r-1", "DOWN")
            assert {replica_of(http.post(CHAT, json=request(video(f"https://h.example/{n}")))) for n in range(12)} == {
                "r-0",
                "r-2",
            }
            assert replica_of(http.get(f"/v1/files/{file}")) == "r-1"
        finally:
            replicas.fakes["r-1"].dead.clear()
            router.wait_for("r-1", "UP")


class Dying:
    """A server that seems ready and closes each connection on which a question has come (context manager)."""

    def __init__(self) -> None:
        self.questions = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def option(self) -> str:
        return f"dying=http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._listener.close()

    def refuse(self) -> None:
        """Nothing listens any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                if connection.recv(1 << 20).startswith(b"GET /health/ready"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                else:
                    self.questions += 1


def test_a_replica_that_is_gone_or_dies_before_its_first_token_costs_no_answer(replicas: Replicas, tmp_path: Path) -> None:
    with Dying() as dying, Router(tmp_path, [dying.option, *replicas.options], check_interval=60) as router:
        with asking(router.url) as http:

            def owners(site: str) -> set[str]:
                return {replica_of(http.post(CHAT, json=request(video(f"https://{site}.example/{n}")))) for n in range(16)}

            assert owners("d") == set(NAMES)
            asked = dying.questions
            assert asked  # and each of those was asked again elsewhere
            dying.refuse()
            assert owners("e") == set(NAMES) and dying.questions == asked
            assert router.servers()["dying"].status.startswith("UP")  # nobody has looked meanwhile


def test_a_join_moves_keys_to_the_new_one_alone_and_a_leave_brings_them_back(replicas: Replicas, tmp_path: Path) -> None:
    def owners(router: Router) -> list[str]:
        with asking(router.url) as http:
            return [replica_of(http.post(CHAT, json=request(video(f"https://j.example/{n}")))) for n in range(40)]

    with Router(tmp_path, replicas.options[:2]) as router:
        before = owners(router)
        added = add(router.directory, replicas.options[2])
        router.wait_for(added.name, "UP")
        during = owners(router)
        assert {new for old, new in zip(before, during, strict=True) if old != new} == {"r-2"}
        assert remove(router.directory, "r-2", 10).cut == 0
        assert owners(router) == before and set(router.servers()) == {"r-0", "r-1"}
        add(router.directory, replicas.options[2])
        router.wait_for("r-2", "UP")
        assert owners(router) == during


def test_a_replica_that_joins_gets_nothing_before_it_is_ready(replicas: Replicas, tmp_path: Path) -> None:
    replicas.fakes["r-1"].dead.add("vit")
    try:
        with Router(tmp_path, replicas.options[:1]) as router, asking(router.url) as http:
            add(router.directory, replicas.options[1])
            assert {replica_of(http.post(CHAT, json=request(video(f"https://n.example/{n}")))) for n in range(12)} == {"r-0"}
            assert router.servers()["r-1"].total == 0
            replicas.fakes["r-1"].dead.clear()
            router.wait_for("r-1", "UP")
    finally:
        replicas.fakes["r-1"].dead.clear()


def test_a_drain_cuts_nothing_and_the_replica_can_come_back(replicas: Replicas, router: Router) -> None:
    gate, fake = threading.Event(), replicas.fakes["r-0"]
    fake.script, fake.reached = [Step([piece("Hello")], gate=gate)], threading.Event()
    results: list[httpx2.Response] = []

    def ask() -> None:
        with asking(router.url) as http:
            results.append(http.post(CHAT, json=request(video(url_of_r0))))

    url_of_r0 = owned_by(router, "r-0", gate)
    fake.reached.clear()
    asked = threading.Thread(target=ask)
    asked.start()
    try:
        assert fake.reached.wait(20)
        until(lambda: router.servers()["r-0"].in_flight == 1, "an earlier request has not ended")
        assert drain(router.directory, "r-0", 0) == 1
        with asking(router.url) as http:
            assert replica_of(http.post(CHAT, json=request(video(url_of_r0)))) != "r-0"
        waiting = threading.Thread(target=drain, args=(router.directory, "r-0", 60))
        waiting.start()
        gate.set()
        waiting.join(20)
        asked.join(20)
        assert not waiting.is_alive() and replica_of(results[0]) == "r-0"
    finally:
        gate.set()
        fake.script = [Step([piece("Hello")])]
        add(router.directory, f"r-0={replicas.urls['r-0']}")
    router.wait_for("r-0", "UP")
    with asking(router.url) as http:
        assert replica_of(http.post(CHAT, json=request(video(url_of_r0)))) == "r-0"


def owned_by(router: Router, name: str, gate: threading.Event) -> str:
    """A video of this replica; its Triton answers while we look."""
    gate.set()
    with asking(router.url) as http:
        found = next(
            url for n in range(200) if replica_of(http.post(CHAT, json=request(video(url := f"https://o.example/{n}")))) == name
        )
    gate.clear()
    return found


def test_a_hot_video_spills_over_where_its_replica_has_more_than_its_share(replicas: Replicas, router: Router) -> None:
    gate = threading.Event()
    for fake in replicas.fakes.values():
        fake.script = [Step([piece("Hello")], gate=gate)]
    found: list[str] = []

    def ask() -> None:
        with asking(router.url) as http:
            found.append(replica_of(http.post(CHAT, json=request(video("https://hot.example/a")))))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    try:
        for thread in threads:
            thread.start()
        until(lambda: sum(each.in_flight for each in router.servers().values()) == 12, "not all were asked")
        busiest = max(each.in_flight for each in router.servers().values())
        assert busiest <= 12 * 2 / 3 + 1 and len([s for s in router.servers().values() if s.in_flight]) > 1
    finally:
        gate.set()
        for thread in threads:
            thread.join(30)
        for fake in replicas.fakes.values():
            fake.script = [Step([piece("Hello")])]
    assert len(found) == 12
