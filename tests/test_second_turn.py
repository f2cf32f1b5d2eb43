"""The whole chain: the second question about a video, videos that many ask about, and requests whose time is over."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, MODEL, answer, client, difference, figures, text_part, video_part

pytestmark = pytest.mark.server


def ask(server: RunningServer, messages: list[dict[str, Any]], **fields: Any) -> str:
    with client(server.adapter_url) as http:
        response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 8, **fields})
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text


def conversation(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    first = {"role": "user", "content": [*parts, text_part("What is shown?")]}
    return [first, {"role": "assistant", "content": "Discs."}, {"role": "user", "content": "Which colours?"}]


@pytest.fixture(scope="module")
def forgetful(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose caches have no size."""
    options = ServeSettings(
        checkpoint=checkpoint,
        device="cpu",
        allowed_local_media_path=(media_dir,),
        run_directory=tmp_path_factory.mktemp("forgetful"),
        frame_cache_mb=0,
        embedding_cache_mb=0,
        **FREE_PORTS,
    )
    with start(options) as running:
        yield running


def test_a_second_turn_decodes_nothing_runs_no_tower_and_answers_the_same(
    server: RunningServer, forgetful: RunningServer, media_dir: Path
) -> None:
    video = video_part(media_dir / "v5.mp4", num_frames=40)
    ask(server, conversation(video)[:1])
    before = figures(server)
    second = ask(server, conversation(video))
    assert difference(server, before, "frames_decoded_total") == 0
    assert difference(server, before, "vision_frames_total") == 0
    assert difference(server, before, "frames_delivered_total") == 40
    assert difference(server, before, "cache_hits_total/embeddings") == 1
    assert second == ask(forgetful, conversation(video))


def test_a_second_turn_starts_in_a_fifth_of_the_time(server: RunningServer, media_dir: Path) -> None:
    video = video_part(media_dir / "v6.mp4", num_frames=80)
    seconds = []
    for messages in (conversation(video)[:1], conversation(video)):
        began = time.monotonic()
        ask(server, messages, max_tokens=1)
        seconds.append(time.monotonic() - began)
    assert seconds[1] < seconds[0] / 5


def test_several_videos_some_known_some_new_answer_as_without_caches(
    server: RunningServer, forgetful: RunningServer, media_dir: Path
) -> None:
    known, new = (video_part(media_dir / name, num_frames=8) for name in ("v1.mp4", "v2.mp4"))
    ask(server, conversation(known))
    before = figures(server)
    parts = [new, known, new]
    assert ask(server, conversation(*parts)) == ask(forgetful, conversation(*parts))
    assert difference(server, before, "vision_frames_total") <= 8
    assert difference(server, before, "frames_delivered_total") == 24


def test_caches_of_no_size_do_the_work_each_time(forgetful: RunningServer, media_dir: Path) -> None:
    before = figures(forgetful)
    texts = {ask(forgetful, conversation(video_part(media_dir / "v3.mp4", num_frames=8))) for _ in range(2)}
    assert len(texts) == 1
    assert difference(forgetful, before, "frames_decoded_total") == 16
    assert difference(forgetful, before, "vision_frames_total") == 16
    assert figures(forgetful)["internvideo_cache_bytes/embeddings"] == 0


def test_many_requests_for_one_new_video_do_the_work_once(server: RunningServer, media_dir: Path) -> None:
    video = video_part(media_dir / "v7.mp4", num_frames=16, start=0.5)
    before = figures(server)
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda _: ask(server, conversation(video)), range(6)))
    assert len(set(texts)) == 1
    assert difference(server, before, "frames_decoded_total") == 16
    assert difference(server, before, "vision_frames_total") == 16


def test_a_file_that_is_replaced_is_seen(server: RunningServer, media_dir: Path) -> None:
    path = media_dir / "replaced.mp4"
    before = figures(server)
    for source in ("v0.mp4", "v4.mp4"):
        shutil.copy(media_dir / source, path)
        ask(server, conversation(video_part(path, num_frames=12)))
    assert difference(server, before, "frames_decoded_total") == 24


def test_every_figure_is_on_the_metrics_page(server: RunningServer, media_dir: Path) -> None:
    with client(server.adapter_url) as http:
        answer(http, video_part(media_dir / "v0.mp4", num_frames=4), text_part("?"))
    shown = figures(server)
    names = "fetch_seconds fetch_bytes decode_seconds frames_decoded frames_delivered vision_seconds vision_frames"
    for name in names.split():
        assert shown[f"internvideo_{name}_total"] > 0
    for cache in ("frames", "embeddings"):
        assert {f"internvideo_cache_{name}/{cache}" for name in ("hits_total", "evictions_total")} <= set(shown)
        assert {f"internvideo_cache_misses_total/{cache}/{kind}" for kind in ("new", "evicted", "too_large")} <= set(shown)
        assert shown[f"internvideo_cache_bytes/{cache}"] > 0
    for model in ("preprocessing", "vit"):
        assert shown[f"internvideo_queue_seconds_total/{model}"] > 0


def test_preprocessing_called_alone_answers_with_the_frames(server: RunningServer, media_dir: Path) -> None:
    messages = json.dumps([{"role": "user", "content": [video_part(media_dir / "v2.mp4", num_frames=8)]}]).encode()
    tensors = [
        ("messages", np.array([[messages]], np.object_), "BYTES"),
        ("request_output_len", np.array([[1]], np.int32), "INT32"),
        ("return_frames", np.array([[True]]), "BOOL"),
    ]
    inputs = [grpcclient.InferInput(name, [1, 1], kind).set_data_from_numpy(value) for name, value, kind in tensors]
    with grpcclient.InferenceServerClient(server.grpc_url) as triton:
        for _ in range(2):  # the second finds them in the frame cache
            result = triton.infer("preprocessing", inputs)
            frames, counts = result.as_numpy("frames"), result.as_numpy("frame_counts")
            assert frames.shape == (1, 8, 3, 448, 448) and frames.any()
            assert (counts.tolist(), result.as_numpy("reservation").tolist()) == ([[8]], [[0]])
        report = json.loads(result.as_numpy("report").item())
        given = grpcclient.InferInput("frames", list(frames.shape), "UINT8").set_data_from_numpy(frames)
        assert triton.infer("vit", [given]).as_numpy("prompt_embedding_table").shape[1] == 8 * 16
    [medium] = report["media"]
    assert (medium["frames"], medium["cached_frames"], len(medium["frame_numbers"])) == (8, 8, 8)
    assert report["preprocessing"]["fetch_seconds"] > 0


def test_an_answer_tells_which_frames_it_saw(server: RunningServer, media_dir: Path) -> None:
    videos = [video_part(media_dir / name, num_frames=count, start=0.2) for name, count in (("v2.mp4", 8), ("v3.mp4", 4))]
    with client(server.adapter_url) as http:
        request = {"model": MODEL, "messages": conversation(*videos, text_part("?")), "max_tokens": 1}
        first, second = (http.post("/v1/chat/completions", json=request).json()["usage"]["internvideo"] for _ in range(2))
    assert [(medium["frames"], medium["cached_frames"]) for medium in first["media"]] == [(8, 0), (4, 0)]
    assert [(medium["frames"], medium["cached_frames"]) for medium in second["media"]] == [(8, 8), (4, 4)]
    numbers = [[medium["frame_numbers"] for medium in turn["media"]] for turn in (first, second)]
    assert numbers[0] == numbers[1] and all(each == sorted(each) for each in numbers[0])
    assert first["vision_ms"] > 0


def test_a_requests_own_timeout_ends_it_in_preprocessing(server: RunningServer, media_dir: Path) -> None:
    messages = [{"role": "user", "content": [video_part(media_dir / "v2.mp4", num_frames=128, start=0.3)]}]
    tensors = {
        "messages": np.array([[json.dumps(messages).encode()]], dtype=np.object_),
        "request_output_len": np.array([[1]], np.int32),
        "return_frames": np.array([[True]]),  # all of them: without it the answer comes before the first is decoded
    }
    inputs = [
        grpcclient.InferInput(name, list(value.shape), kind).set_data_from_numpy(value)
        for (name, value), kind in zip(tensors.items(), ("BYTES", "INT32", "BOOL"), strict=True)
    ]
    with grpcclient.InferenceServerClient(server.grpc_url) as triton, pytest.raises(InferenceServerException) as caught:
        triton.infer("preprocessing", inputs, timeout=20_000)  # microseconds
    assert "[DEADLINE_EXCEEDED" in str(caught.value)


def test_the_servers_limit_ends_a_request_at_every_stage(
    checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = ServeSettings(
        checkpoint=checkpoint,
        device="cpu",
        allowed_local_media_path=(media_dir,),
        run_directory=tmp_path_factory.mktemp("hurried"),
        request_timeout=0.3,
        **FREE_PORTS,
    )
    with start(options) as hurried, client(hurried.adapter_url) as http:
        video = video_part(media_dir / "v7.mp4", num_frames=128)
        content = {"model": MODEL, "messages": [{"role": "user", "content": [video]}]}
        response = http.post("/v1/chat/completions", json=content)
        assert response.status_code == 504, response.text
        assert response.json()["error"]["code"] == "deadline_exceeded"
        story = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 7000}
        assert http.post("/v1/chat/completions", json=story).status_code == 504
