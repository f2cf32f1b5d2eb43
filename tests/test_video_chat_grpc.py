"""VideoChat straight to Triton: the adapter's answers, files by shared memory, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from internvideo_client import ApiError, AsyncVideoChat, VideoChat
from internvideo_client.media_region import MediaRegion
from internvideo_server.launch import RunningServer

QUESTION = "What happens?"


@pytest.fixture
def address(server: RunningServer) -> dict[str, object]:
    secret = server.repository.parent / "triton_secret"
    assert secret.is_file()
    return {"url": f"grpc://{server.grpc_url}", "engine": server.engine, "secret_file": secret}


def segments() -> list[Path]:
    return list(Path("/dev/shm").glob("internvideo_media_*"))


@pytest.mark.server
@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "bytes"])
def test_triton_answers_as_the_adapter_does(
    server: RunningServer, address: dict[str, object], media_dir: Path, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "internvideo_client")
    over_http = VideoChat(server.adapter_url)
    over_grpc = VideoChat(**(address if shared else address | {"secret_file": None}))  # type: ignore[arg-type]
    for chat in (over_http, over_grpc):
        chat.ask(media_dir / "v1.mp4", QUESTION, num_frames=4, max_tokens=12)
        chat.ask([media_dir / "v2.mp4", media_dir / "v1.mp4"], "And now?", num_frames=4, max_tokens=12, seed=-1)
    assert [each["content"] for each in over_grpc.messages[1::2]] == [each["content"] for each in over_http.messages[1::2]]
    assert "the bytes are sent" not in caplog.text  # nothing went wrong on the way
    assert segments() == []


@pytest.mark.server
def test_usage_and_timings_are_told(server: RunningServer, address: dict[str, object], media_dir: Path) -> None:
    options = {"num_frames": 4, "max_tokens": 6}
    told = VideoChat(**address).ask(media_dir / "v3.mp4", QUESTION, **options)  # type: ignore[arg-type]
    known = VideoChat(server.adapter_url).ask(media_dir / "v3.mp4", QUESTION, **options)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert told.usage[name] == known.usage[name]
    assert told.usage["prompt_tokens_details"]["video_tokens"] == 64
    assert told.timings["frames"] == 4
    assert told.timings["first_token_ms"] > 0
    assert told.finish_reason == known.finish_reason


@pytest.mark.server
def test_a_stream_that_is_left_ends_the_work(server: RunningServer, address: dict[str, object], media_dir: Path) -> None:
    chat = VideoChat(**address)  # type: ignore[arg-type]
    stream = chat.ask(media_dir / "v1.mp4", QUESTION, stream=True, num_frames=4, ignore_eos=True)
    parts = iter(stream)
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    assert segments() == []
    assert chat.messages == []  # what was not answered is no part of the conversation


@pytest.mark.server
def test_many_at_once_from_asyncio(server: RunningServer, address: dict[str, object], media_dir: Path) -> None:
    async def ask_all() -> list[str]:
        chats = [AsyncVideoChat(**address) for _ in range(4)]  # type: ignore[arg-type]
        answers = await asyncio.gather(*(chat.ask(media_dir / "v1.mp4", QUESTION, num_frames=4, max_tokens=8) for chat in chats))
        return [answer.text for answer in answers]

    alone = VideoChat(server.adapter_url).ask(media_dir / "v1.mp4", QUESTION, num_frames=4, max_tokens=8).text
    assert asyncio.run(ask_all()) == [alone] * 4
    assert segments() == []


@pytest.mark.server
@pytest.mark.parametrize("content", ["another run's secret", None], ids=["wrong", "unreadable"])
def test_without_the_secret_the_bytes_are_sent(
    address: dict[str, object], media_dir: Path, tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "internvideo_client")
    if content is not None:
        (tmp_path / "secret").write_text(content)
    chat = VideoChat(**address | {"secret_file": tmp_path / "secret"})  # type: ignore[arg-type]
    assert chat.ask(media_dir / "v1.mp4", QUESTION, num_frames=4, max_tokens=4).usage["prompt_tokens"] > 64
    assert "are sent" in caplog.text
    assert segments() == []


@pytest.mark.server
def test_refusals_have_the_servers_words_and_status(address: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    chat = VideoChat(**address)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as refused:
        chat.ask(tmp_path / "notes.mp4", QUESTION)
    assert refused.value.status == 400
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ApiError) as empty:
        chat.ask(tmp_path / "empty.mp4", QUESTION)
    assert empty.value.status == 400
    with pytest.raises(OSError, match="absent"):
        chat.ask(tmp_path / "absent.mp4", QUESTION)
    with pytest.raises(ApiError, match="tools: not over gRPC") as adapter_only:
        chat.ask(None, QUESTION, tools=[{"type": "function"}])
    assert adapter_only.value.code == "unsupported_parameter"
    assert segments() == []


@pytest.mark.server
def test_a_stop_string_ends_the_answer_before_it(server: RunningServer, address: dict[str, object]) -> None:
    whole = VideoChat(**address).ask(None, "hello", max_tokens=12).text  # type: ignore[arg-type]
    stop = whole[len(whole) // 2 :][:3]
    answer = VideoChat(**address).ask(None, "hello", max_tokens=12, stop=stop)  # type: ignore[arg-type]
    assert (answer.text, answer.finish_reason) == (whole[: whole.find(stop)], "stop")


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [("grpc://127.0.0.1", {"engine": "."}, "no host and port"), ("grpc://127.0.0.1:8001", {}, "give engine=DIR")],
)
def test_an_address_that_cannot_be_is_told(url: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ApiError, match=said):
        VideoChat(url, **options)  # type: ignore[arg-type]


@pytest.mark.server
def test_nobody_answers(server: RunningServer) -> None:
    with pytest.raises(ApiError) as error:
        VideoChat("grpc://127.0.0.1:9", engine=server.engine).ask(None, QUESTION)
    assert error.value.status == 503


def test_a_region_holds_the_files_and_goes_with_its_context(tmp_path: Path) -> None:
    contents = [b"one", b"", b"three" * 100_000]
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(content)
    with MediaRegion(files) as region:
        segment = Path("/dev/shm") / region.name
        assert segment.read_bytes() == b"".join(contents)
        assert segment.stat().st_mode & 0o777 == 0o600
        assert region.sizes == [3, 0, 500_000]
    assert not segment.exists()
    with pytest.raises(OSError, match="absent"):
        MediaRegion([files[0], tmp_path / "absent"])
    assert segments() == []
