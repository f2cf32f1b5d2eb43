"""Long videos through the real server: the ids are those of transformers' plain ``generate`` over rows made group by group.

In float32 on the tiny checkpoint, whatever decodes, overlaps, is prefilled in chunks or comes from a cache on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.launch import RunningServer, start
from internvideo_server.limits import EngineLimits
from internvideo_server.preprocessing.chat import ChatTokenizer, build_prompt, parse_messages
from internvideo_server.preprocessing.video import DecodeLimits, DecodeRequest, FrameDecoder, FrameSampling
from internvideo_server.settings import ServeSettings
from internvideo_server.vit.vision import VisionModel
from tests.asking import FREE_PORTS, body, client, difference, ensemble_ids, figures, text_part, video_part

pytestmark = pytest.mark.server
TOKENS = 12  # of each answer


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute and a half in which no two frames are alike."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    y, x = np.mgrid[0:64, 0:64]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=15, options={"preset": "ultrafast", "g": "30"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 64, "yuv420p", Fraction(1, 15)
        for i in range(1300):
            disc = ((x - 32 - 24 * np.cos(i / 9)) ** 2 + (y - 32 - 24 * np.sin(i / 23)) ** 2 < 90)[..., None]
            ground = np.stack([(x + i) % 256, (2 * y + 3 * i) % 256, np.full_like(x, i % 256)], -1)
            picture = np.where(disc, [255, 40, i % 200], ground).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())
    return path


def served(checkpoint: Path, film: Path, **options: Any) -> RunningServer:
    options |= {"device": "cpu", "allowed_local_media_path": (film.parent,), "request_timeout": 900.0}
    return start(ServeSettings(checkpoint=checkpoint, **options, **FREE_PORTS))


@pytest.fixture(scope="module")
def server_of_512(checkpoint: Path, film: Path) -> Iterator[RunningServer]:
    with served(checkpoint, film, max_frames=512) as running:
        yield running


def question(film: Path, frames: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [video_part(film, num_frames=frames), text_part("Describe this video in detail.")]}]


class Reference:
    """What the model says by the plainest means."""

    def __init__(self, server: RunningServer, checkpoint: Path, film: Path, frames: int) -> None:
        self._tokenizer = ChatTokenizer.from_file(server.engine / "tokenizer.json")
        self._vocab_size = EngineLimits.from_engine_dir(server.engine).vocab_size
        self._model = LlamaForCausalLM.from_pretrained(server.engine / "llama", dtype=torch.float32, local_files_only=True)
        self._frames = frames
        vision = VisionModel.from_checkpoint(checkpoint, "cpu", torch.float32)
        limits = DecodeLimits(max_frames=frames)
        with FrameDecoder(1, limits) as decoder, FrameBuffer() as buffer, film.open("rb") as file:
            decoder.decode(file.fileno(), DecodeRequest(sampling=FrameSampling(num_frames=frames)), buffer)
            groups = torch.from_numpy(buffer.frames().copy()).split(4)
            self._rows = torch.cat([vision.embed(group) for group in groups])  # [16 T, hidden]

    @torch.inference_mode()
    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        conversation = parse_messages(json.dumps(messages).encode(), 8)
        prompt = build_prompt(conversation, [self._frames], self._tokenizer, self._vocab_size, [bytes(32)])
        ids = torch.from_numpy(prompt.input_ids.astype(np.int64))
        text = ids < self._vocab_size
        embeds = self._model.get_input_embeddings()(ids.clamp(max=self._vocab_size - 1))
        embeds[~text] = self._rows[ids[~text] - self._vocab_size]
        model: Any = self._model
        plain = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        made = model.generate(inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(ids)), **plain)
        ends = set(np.atleast_1d(self._model.generation_config.eos_token_id).tolist())
        found = made[0].tolist()
        return found[: next((at for at, token in enumerate(found) if token in ends), len(found))]


def turns(film: Path, frames: int) -> list[dict[str, Any]]:
    again = [{"role": "assistant", "content": "A disc that moves."}, {"role": "user", "content": "Which colour does it have?"}]
    return [*question(film, frames), *again]


@pytest.mark.ci
def test_512_frames_give_the_ids_of_plain_generate_the_first_time_and_from_every_cache(
    server_of_512: RunningServer, checkpoint: Path, film: Path
) -> None:
    reference = Reference(server_of_512, checkpoint, film, 512)
    first, second = reference.ids(question(film, 512)), reference.ids(turns(film, 512))
    assert ensemble_ids(server_of_512.grpc_url, question(film, 512), TOKENS) == first
    before = figures(server_of_512)
    assert ensemble_ids(server_of_512.grpc_url, question(film, 512), TOKENS) == first  # rows and keys are there
    assert ensemble_ids(server_of_512.grpc_url, turns(film, 512), TOKENS) == second
    assert difference(server_of_512, before, "frames_decoded_total") == 0
    assert difference(server_of_512, before, "vision_frames_total") == 0


@pytest.mark.ci
def test_what_cannot_fit_is_refused_with_the_numbers(server_of_512: RunningServer, film: Path) -> None:
    def refusal(*content: dict[str, Any]) -> str:
        with client(server_of_512.adapter_url) as http:
            response = http.post("/v1/chat/completions", json=body(*content))
        assert response.status_code == 400, response.text
        return str(response.json()["error"]["message"])

    before = figures(server_of_512)
    assert "from 4 to 512, got 516" in refusal(video_part(film, num_frames=516), text_part("?"))
    two = [video_part(film, num_frames=260), video_part(film, num_frames=260, start=1.0)]
    assert "520 frames together, the engine takes 512" in refusal(*two, text_part("?"))
    overflow = refusal(video_part(film, num_frames=512), text_part("words of text " * 1200))
    assert "maximum context length is 15872 tokens, but the prompt has" in overflow and "8192 of them visual" in overflow
    assert difference(server_of_512, before, "frames_decoded_total") == 0


@pytest.mark.ci
def test_a_rate_that_asks_for_more_than_fits_is_lowered_and_told(server_of_512: RunningServer, film: Path) -> None:
    with client(server_of_512.adapter_url) as http:
        response = http.post("/v1/chat/completions", json=body(video_part(film, fps=15.0), text_part("?"), max_tokens=1))
    (medium,) = response.json()["usage"]["internvideo"]["media"]
    assert medium["frames"] == 512 and medium["fps"] == pytest.approx(512 / (1300 / 15), rel=0.02)


@pytest.mark.long
def test_1200_frames_fill_the_context_and_give_the_ids_of_plain_generate(checkpoint: Path, film: Path) -> None:
    with served(checkpoint, film, max_frames=1200, max_model_len="32768", frame_cache_mb=0) as server:
        reference = Reference(server, checkpoint, film, 1200).ids(question(film, 1200))
        for _ in range(2):
            assert ensemble_ids(server.grpc_url, question(film, 1200), TOKENS) == reference
