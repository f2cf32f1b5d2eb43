"""The served chain answers with what the original code computed: the golden checkpoint, over gRPC and HTTP, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, answer, client, ensemble_ids, text_part, video_part

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def golden_server(golden: Path, shared_dir: Path) -> Iterator[RunningServer]:
    roots = (shared_dir / "data",)
    with start(ServeSettings(checkpoint=golden / "model", device="cpu", allowed_local_media_path=roots, **FREE_PORTS)) as running:
        yield running


@pytest.fixture(params=[8, 16], ids=["8 frames", "16 frames"])
def case(request: pytest.FixtureRequest, golden: Path, shared_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Content parts, and the original's result for them."""
    reference = json.loads((golden / f"f{request.param}" / "reference.json").read_text())
    video = video_part(shared_dir / "data" / "red-panda.mp4", num_frames=request.param)
    return [video, text_part("Describe this video in detail.")], reference


def expected_ids(reference: dict[str, Any]) -> list[int]:
    ids: list[int] = reference["output_ids"]
    return ids[: ids.index(reference["eos_token_id"])] if reference["eos_token_id"] in ids else ids


def test_greedy_ids_over_grpc(golden_server: RunningServer, case: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    content, reference = case
    ids = ensemble_ids(golden_server.grpc_url, [{"role": "user", "content": content}], len(reference["output_ids"]))
    assert ids == expected_ids(reference)


def test_text_over_http(golden_server: RunningServer, case: tuple[list[dict[str, Any]], dict[str, Any]], golden: Path) -> None:
    content, reference = case
    pieces = sentencepiece.SentencePieceProcessor(str(golden / "model" / "tokenizer.model"))
    with client(golden_server.adapter_url) as http:
        text = answer(http, *content, max_tokens=len(reference["output_ids"]))
    assert text == pieces.decode(expected_ids(reference))
