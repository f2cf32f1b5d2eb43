"""Files and responses that the adapter keeps, each for the key that made it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import openai
import pytest

from internvideo_client.state import SharedCounts
from tests.fake_triton import FakeTriton, Step, piece, running

MODEL = "InternVideo2_5"
DATA = "data:video/mp4;base64," + "QUJD" * 2000


@pytest.fixture
def url(fake: FakeTriton, tmp_path: Path) -> Iterator[str]:
    fake.script = [Step([piece("Hello")]), Step([piece("▁world")])]
    options = {"state_directory": tmp_path / "state", "api_key": ("one", "two"), "max_file_mb": 1, "file_quota_mb": 2}
    with running(fake, tmp_path, **options) as base:
        yield base


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="one", max_retries=0) as client:
        yield client


def headers(key: str = "one") -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def path_of(file_url: str) -> Path:
    return Path(unquote(urlsplit(file_url).path))


def video(fake: FakeTriton, request: int = -1) -> str:
    part = fake.requests[request]["messages"][0]["content"][0]
    found: str = part["video_url"]["url"]
    return found


def test_a_file_is_kept_used_and_deleted(fake: FakeTriton, sdk: openai.OpenAI, url: str) -> None:
    file = sdk.files.create(file=("a/b.mp4", io.BytesIO(b"content")), purpose="vision")
    assert (file.bytes, file.filename, file.purpose) == (7, "b.mp4", "vision")
    assert [each.id for each in sdk.files.list()] == [file.id] and sdk.files.retrieve(file.id).bytes == 7
    assert sdk.files.content(file.id).read() == b"content"
    question = [{"type": "video_url", "video_url": {"url": f"file-id:{file.id}", "num_frames": 8}}]
    sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    kept = path_of(video(fake))
    assert kept.read_bytes() == b"content" and kept.stat().st_mode & 0o77 == 0
    assert sdk.files.delete(file.id).deleted and not kept.exists()
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])


def test_another_key_does_not_see_a_file(sdk: openai.OpenAI, url: str) -> None:
    file = sdk.files.create(file=("a.mp4", io.BytesIO(b"content")), purpose="vision")
    for path in (f"/v1/files/{file.id}", f"/v1/files/{file.id}/content"):
        assert httpx2.get(f"{url}{path}", headers=headers("two")).status_code == 404
    assert httpx2.delete(f"{url}/v1/files/{file.id}", headers=headers("two")).status_code == 404
    assert httpx2.get(f"{url}/v1/files", headers=headers("two")).json()["data"] == []
    part = {"type": "video_url", "video_url": {"url": f"file-id:{file.id}"}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers("two"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "file_not_found")


def test_files_have_a_size_and_a_quota_and_leave_nothing_when_they_are_refused(url: str, tmp_path: Path) -> None:
    def send(content: bytes, **fields: str) -> httpx2.Response:
        return httpx2.post(f"{url}/v1/files", files={"file": ("a.mp4", content)}, data=fields, headers=headers(), timeout=30)

    assert send(b"x" * (1 << 20)).status_code == 200
    assert send(b"x" * ((1 << 20) + 1)).json()["error"]["code"] == "request_too_large"
    assert send(b"").status_code == 400
    days: dict[str, str] = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert send(b"x", **days).json()["error"]["code"] == "unsupported_parameter"
    assert send(b"x" * (1 << 20)).status_code == 200
    assert send(b"x").json()["error"]["code"] == "quota_exceeded"
    assert httpx2.post(f"{url}/v1/files", content=b"{}", headers=headers()).status_code == 415
    assert httpx2.post(f"{url}/v1/files", files={"other": b"x"}, headers=headers()).json()["error"]["param"] == "file"
    assert len(list((tmp_path / "state" / "files").iterdir())) == 2


def test_a_list_of_files_has_pages(sdk: openai.OpenAI) -> None:
    ids = [sdk.files.create(file=(f"{n}.mp4", io.BytesIO(b"x")), purpose="vision").id for n in range(3)]
    with pytest.raises(openai.BadRequestError):
        sdk.files.list(extra_query={"order": "oldest"})
    page = sdk.files.list(limit=2, order="asc")
    assert [each.id for each in page.data] == ids[:2] and page.has_more
    assert [each.id for each in sdk.files.list(limit=2, order="asc", after=ids[1]).data] == ids[2:]


def test_a_server_without_a_folder_keeps_no_files(fake: FakeTriton, tmp_path: Path) -> None:
    with running(fake, tmp_path) as url:
        answer = httpx2.post(f"{url}/v1/files", files={"file": b"x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "files_disabled")


def test_media_of_a_body_travel_as_bytes(fake: FakeTriton, url: str) -> None:
    parts: list[Any] = [{"type": "video_url", "video_url": {"url": DATA}}, {"type": "text", "text": DATA}, {"video_url": DATA}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
    assert httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers()).status_code == 200
    sent = fake.requests[0]
    first, text, second = sent["messages"][0]["content"]
    assert (first["video_url"]["url"], second["video_url"]["url"]) == ("attachment:0", "attachment:1")
    assert text["text"] == DATA, "a text that only looks like a medium"
    assert sent["video_sizes"] == [6000, 6000] and sent["video_bytes"] == b"ABC" * 4000


def test_a_response_goes_on_from_another_with_its_video(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    content: Any = [{"type": "input_video", "video_url": DATA, "num_frames": 8}, {"type": "input_text", "text": "What?"}]
    first = sdk.responses.create(model=MODEL, input=[{"role": "user", "content": content}], instructions="Be brief.")
    assert first.output_text == "Hello world" and first.status == "completed" and first.usage is not None
    second = sdk.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    messages = fake.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"], "instructions are not taken over"
    assert messages[1]["content"] == "Hello world" and path_of(video(fake)).read_bytes() == b"ABC" * 2000
    assert sdk.responses.retrieve(second.id).previous_response_id == first.id
    assert sdk.responses.input_items.list(first.id).data[0].type in (None, "message")
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="there is no response"):
        sdk.responses.create(model=MODEL, input="And?", previous_response_id=first.id)


def test_a_response_in_events_is_the_plain_one(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model=MODEL, input="What?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 2 and final.output_text == "Hello world"
    assert sdk.responses.retrieve(final.id).output_text == "Hello world"


def test_a_kept_response_has_no_events_to_come(sdk: openai.OpenAI) -> None:
    kept = sdk.responses.create(model=MODEL, input="hi")
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.responses.retrieve(kept.id, stream=True)
    assert refused.value.param == "stream" and sdk.responses.retrieve(kept.id).id == kept.id


def test_a_response_that_is_not_stored_is_not_found_again(sdk: openai.OpenAI) -> None:
    response = sdk.responses.create(model=MODEL, input="What?", store=False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(response.id)


def test_a_response_is_a_call_and_its_output_goes_into_the_next(fake: FakeTriton, sdk: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "move", "parameters": {"type": "object"}, "strict": False}
    first = sdk.responses.create(model=MODEL, input="Move", tools=[tool], tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call" and (call.name, call.arguments) == ("move", "Hello world")
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    sdk.responses.create(model=MODEL, input=output, previous_response_id=first.id)
    roles = [(message["role"], bool(message.get("tool_calls"))) for message in fake.requests[-1]["messages"]]
    assert roles == [("user", False), ("assistant", True), ("tool", False)]


def test_an_error_before_the_first_event_has_its_status_and_one_after_it_is_told(fake: FakeTriton, url: str) -> None:
    body = {"model": MODEL, "input": "What?", "stream": True}
    fake.script = [Step(error="[INVALID_ARGUMENT param=messages] no")]
    assert httpx2.post(f"{url}/v1/responses", json=body, headers=headers()).status_code == 400
    fake.script = [Step([piece("Hello")]), Step(error="[INTERNAL] broken")]
    text = httpx2.post(f"{url}/v1/responses", json=body, headers=headers()).text
    last = json.loads([line for line in text.split("\n") if line.startswith("data: ")][-1][6:])
    assert last["type"] == "response.failed" and last["response"]["error"]["message"] == "broken"


def test_what_a_process_had_at_work_is_let_go_when_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "shares.sqlite3"
    counts = SharedCounts(path)
    take = f"from pathlib import Path; from internvideo_client.state import SharedCounts as S; c = S(Path({str(path)!r}));"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{take} print(c.take('key', 'requests', 3, 3), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert not counts.take("key", "requests", 1, 3) and counts.take("another", "requests", 1, 3)
    other.kill()
    other.communicate()
    assert counts.take("key", "requests", 3, 3) and not counts.take("key", "requests", 1, 3)
    counts.give("key", "requests", 1)
    assert counts.take("key", "requests", 1, 3)
    counts.close()
