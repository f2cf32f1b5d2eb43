"""Which replica a request goes to: the rule itself, without a router."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_server.routing import LOOKED_AT, NAME, Route, new_file_id, response_id, route
from internvideo_server.settings import AdapterSettings
from tests.fake_triton import FakeTriton, Step, piece, running

CHAT = "/v1/chat/completions"
URL = "https://media.example/a%20b.mp4?token=x&y=1#t"
FILE = f"file-r-1-{'0' * 32}"

names = st.from_regex(rf"\A{NAME}\Z")
#: What may stand in a message beside its media.
texts = st.text(max_size=60) | st.sampled_from(
    ['"url": "https://x"', '{"video_url":{"url":"y"}}', '"file-a-' + "0" * 32 + '"', "url"]
)
urls = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=200).map(
    lambda rest: f"https://{rest}"
)


def forms(url: str) -> list[dict[str, Any]]:
    """Each shape in which a client may write a medium."""
    kinds = ("video_url", "image_url", "video", "image", "input_video", "input_image")
    return [
        *({"type": kind, kind: url} for kind in kinds),
        *({"type": kind, kind: {"url": url, "num_frames": 8}} for kind in kinds),
        *({"type": kind, kind: {"detail": "low", "url": url}} for kind in kinds),
        {"type": "input_file", "file_url": url},
        {"type": "file", "file": {"file_data": url, "filename": "a.mp4"}},
    ]


def chat(*content: Any, before: list[dict[str, Any]] | None = None) -> bytes:
    return json.dumps({"model": "m", "messages": [*(before or []), {"role": "user", "content": list(content)}]}).encode()


@given(url=urls, text=texts, system=texts)
def test_every_form_of_one_medium_has_one_key_wherever_it_stands(url: str, text: str, system: str) -> None:
    wanted = route(CHAT, chat({"type": "video_url", "video_url": {"url": url}}))
    assert wanted.key and wanted.replica is None
    for part in forms(url):
        for content in ([part], [{"type": "text", "text": text}, part], [part, {"type": "text", "text": text}]):
            assert route(CHAT, chat(*content, before=[{"role": "system", "content": system}])) == wanted


@given(url=urls, later=st.lists(texts, max_size=4), other=urls)
def test_later_turns_and_other_media_behind_it_change_nothing(url: str, later: list[str], other: str) -> None:
    first = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
    turns = [{"role": "assistant", "content": text} for text in later]
    wanted = route(CHAT, json.dumps({"messages": [first]}).encode())
    assert route(CHAT, chat({"type": "image_url", "image_url": other}, before=[first, *turns])) == wanted


@given(text=st.lists(texts, max_size=5), session=st.text(max_size=20))
def test_a_text_is_no_medium_whatever_it_says(text: list[str], session: str) -> None:
    messages = [{"role": "user", "content": each} for each in text if not each.startswith('"file-')]
    assert route(CHAT, json.dumps({"messages": messages}).encode()) == Route()


def test_escaped_slashes_and_spaces_between_tokens_are_the_same_medium() -> None:
    plain = json.dumps({"video_url": {"url": URL}}).encode()
    wanted = route(CHAT, plain)
    assert wanted == route(CHAT, plain.replace(b"/", b"\\/"))
    assert wanted == route(
        CHAT, json.dumps({"video_url": {"url": URL}}, indent=2).replace(":", " :\n").replace("https :\n", "https:").encode()
    )


def test_of_a_long_medium_the_beginning_is_the_key() -> None:
    data = "data:video/mp4;base64," + "A" * 5_000_000
    whole = chat({"type": "video_url", "video_url": {"url": data}})
    assert route(CHAT, whole) == route(CHAT, whole[:LOOKED_AT]) == route(CHAT, chat({"type": "video", "video": data[:4000]}))
    assert route(CHAT, whole) != route(CHAT, chat({"type": "video", "video": "B" + data}))


@given(name=names)
def test_ids_lead_to_the_replica_that_made_them(name: str) -> None:
    file, response = new_file_id(name), response_id(name, "0a" * 16)
    wanted = Route(replica=name)
    for path in (
        f"/v1/files/{file}",
        f"/v1/files/{file}/content",
        f"/v1/responses/{response}",
        f"/v1/responses/{response}/input_items",
    ):
        assert route(path) == wanted
    for part in (*forms(f"file-id:{file}"), {"type": "input_file", "file_id": file}, {"type": "file", "file": {"file_id": file}}):
        assert route(CHAT, chat({"type": "video", "video": URL}, part), session="s") == wanted
    body = json.dumps({"previous_response_id": response, "input": [{"content": [{"type": "input_video", "video_url": URL}]}]})
    assert route("/v1/responses", body.encode()) == wanted


@given(path=st.text(max_size=40), body=st.binary(max_size=200), session=st.text(max_size=20))
def test_any_request_has_a_route(path: str, body: bytes, session: str) -> None:
    found = route(path, body, session)
    assert found.replica is None or found.key is None
    assert found.key is None or (len(found.key) == 16 and found.key.isalnum())


def test_ids_without_a_replica_lead_anywhere() -> None:
    assert route(f"/v1/files/{new_file_id(None)}") == route(f"/v1/responses/{response_id(None, '0' * 32)}") == Route()


def test_a_session_wins_over_the_medium_and_not_over_what_is_kept() -> None:
    body = chat({"type": "video", "video": URL})
    assert route(CHAT, body, "s") == route(CHAT, b"", "s") != route(CHAT, body)
    assert route(CHAT, chat({"type": "video", "video": f"file-id:{FILE}"}), "s") == Route(replica="r-1")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64])
def test_a_name_that_no_id_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="replica_name"):
        AdapterSettings(triton="x:1", tokenizer=Path("t"), replica_name=name)


def test_a_replica_with_a_name_gives_it_to_its_ids(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [Step([piece("Hello")])]
    with running(fake, tmp_path, state_directory=tmp_path / "state", replica_name="r-1") as url:
        with httpx2.Client(base_url=url, trust_env=False) as http:
            file = http.post("/v1/files", files={"file": ("a.mp4", io.BytesIO(b"x"))}, data={"purpose": "vision"}).json()
            answer = http.post("/v1/responses", json={"model": "InternVideo2_5", "input": "Hi"}).json()
            assert http.get(f"/v1/files/{file['id']}").json() == file
            assert http.get(f"/v1/responses/{answer['id']}").json()["id"] == answer["id"]
    assert route(f"/v1/files/{file['id']}") == route(f"/v1/responses/{answer['id']}") == Route(replica="r-1")
