"""The whole chain on a GPU: real tritonserver, GPU tensors between the models, a client's own CUDA regions, and a long load."""

from __future__ import annotations

import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc as grpcclient

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, answer, body, client, ensemble_ids, text_part, video_part
from tests.test_second_turn import conversation, difference, figures

pytestmark = [pytest.mark.gpu, pytest.mark.server]


@pytest.fixture(scope="module")
def gpu_server(checkpoint: Path, media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ServeSettings(
        checkpoint=checkpoint,
        device="cuda",
        allowed_local_media_path=(media_dir,),
        run_directory=tmp_path_factory.mktemp("gpu"),
        decode_workers=8,
        frame_cache_mb=64,
        embedding_cache_mb=1,
        ready_timeout=90.0,
        **FREE_PORTS,
    )
    with start(options) as running:
        yield running


def test_text_and_video_are_answered_and_streams_equal_plain_answers(gpu_server: RunningServer, media_dir: Path) -> None:
    with client(gpu_server.adapter_url) as http:
        assert answer(http, text_part("hello"), max_tokens=8)
        parts = [video_part(media_dir / "v1.mp4", num_frames=16), text_part("What moves?")]
        plain = answer(http, *parts, max_tokens=16)
        events = http.post("/v1/chat/completions", json=body(*parts, max_tokens=16, stream=True)).text
    assert plain
    assert "[DONE]" in events
    assert "error" not in events


def test_a_second_turn_runs_no_tower(gpu_server: RunningServer, media_dir: Path) -> None:
    video = video_part(media_dir / "v5.mp4", num_frames=40)
    with client(gpu_server.adapter_url) as http:
        for turn, messages in enumerate((conversation(video)[:1], conversation(video))):
            before = figures(gpu_server)
            response = http.post("/v1/chat/completions", json={**body(), "messages": messages})
            assert response.status_code == 200, response.text
            assert difference(gpu_server, before, "vision_frames_total") == (0 if turn else 40)
    assert figures(gpu_server)["internvideo_regions_in_use"] == 0


def test_a_client_calls_vit_with_frames_and_table_in_its_own_cuda_regions(gpu_server: RunningServer) -> None:
    from tritonclient.utils import cuda_shared_memory as regions

    frames = torch.randint(0, 256, (1, 16, 3, 448, 448), dtype=torch.uint8, device="cuda")
    name, headers = uuid.uuid4().hex, gpu_server.secret.grpc_headers
    with grpcclient.InferenceServerClient(gpu_server.grpc_url) as triton:
        plain = infer(
            triton, grpcclient.InferInput("frames", list(frames.shape), "UINT8").set_data_from_numpy(frames.cpu().numpy())
        )
        expected = torch.frombuffer(bytearray(plain.get_response().raw_output_contents[0]), dtype=torch.bfloat16)
        shape = list(plain.get_output("prompt_embedding_table").shape)
        sizes = {f"{name}_frames": frames.numel(), f"{name}_table": expected.numel() * 2}
        held = {key: regions.create_shared_memory_region(key, size, 0) for key, size in sizes.items()}
        try:
            for key, size in sizes.items():
                triton.register_cuda_shared_memory(key, regions.get_raw_handle(held[key]), 0, size, headers=headers)
            regions.set_shared_memory_region_from_dlpack(held[f"{name}_frames"], [frames])
            sent = grpcclient.InferInput("frames", list(frames.shape), "UINT8")
            sent.set_shared_memory(f"{name}_frames", frames.numel())
            wanted = grpcclient.InferRequestedOutput("prompt_embedding_table")
            wanted.set_shared_memory(f"{name}_table", sizes[f"{name}_table"])
            result = infer(triton, sent, wanted)
            assert not any(result.get_response().raw_output_contents)  # the rows went into the region
            got = regions.get_contents_as_numpy(held[f"{name}_table"], np.uint8, [sizes[f"{name}_table"]])
            assert torch.equal(torch.from_numpy(got.copy()).view(torch.bfloat16), expected)
            assert list(result.get_output("prompt_embedding_table").shape) == shape
        finally:
            for key, region in held.items():
                triton.unregister_cuda_shared_memory(key, headers=headers)
                regions.destroy_shared_memory_region(region)


def infer(triton: grpcclient.InferenceServerClient, frames: Any, wanted: Any = None) -> Any:
    return triton.infer("vit", [frames], outputs=[wanted or grpcclient.InferRequestedOutput("prompt_embedding_table")])


def test_two_thousand_requests_sixteen_at_a_time_lose_nothing_and_memory_is_flat(
    gpu_server: RunningServer, media_dir: Path
) -> None:
    before = figures(gpu_server)

    def ask(turn: int) -> int:
        frames = 80 if turn % 16 == 0 else 8
        video = video_part(media_dir / f"v{turn % 8}.mp4", num_frames=frames, start=turn % 400 / 1000)  # new ones at first
        return len(ensemble_ids(gpu_server.grpc_url, [{"role": "user", "content": [video, text_part(f"{turn}?")]}], 2))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(400)))
        full = memory()  # with all caches filled
        lengths = Counter(pool.map(ask, range(400, 2400)))
    after = memory()
    assert sum(lengths.values()) == 2000
    assert set(lengths) <= {1, 2}  # an end token may come first
    assert figures(gpu_server)["internvideo_regions_in_use"] == 0
    assert difference(gpu_server, before, "frames_delivered_total") == 2400 / 16 * (80 + 15 * 8)
    assert after["gpu MiB"] <= full["gpu MiB"] + 64
    assert after["host MiB"] <= full["host MiB"] + 200


def memory() -> dict[str, int]:
    """Of the GPU, and of this process's descendants."""
    line = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
    )
    family = psutil.Process().children(recursive=True)
    return {"gpu MiB": int(line.stdout.split()[0]), "host MiB": sum(child.memory_info().rss for child in family) >> 20}
