"""Asking the running server over HTTP and gRPC, as the end-to-end tests do."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import tritonclient.grpc as grpcclient
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import np_to_triton_dtype

from internvideo_server.launch import RunningServer

MODEL = "InternVideo2_5"
#: Options of a server that shares no port with another.
FREE_PORTS: dict[str, Any] = dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0)
TIMEOUT_S = 120.0
MOST_SECONDS = 60.0  # of waiting for something that comes at once on a quiet machine


def until(condition: Callable[[], bool], what: str, seconds: float = MOST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def video_part(path: Path, **options: Any) -> dict[str, Any]:
    """A ``video_url`` content part for a local file."""
    return {"type": "video_url", "video_url": {"url": path.as_uri(), **options}}


def text_part(text: str) -> dict[str, Any]:
    """A ``text`` content part."""
    return {"type": "text", "text": text}


def body(*content: dict[str, Any], max_tokens: int = 16, **fields: Any) -> dict[str, Any]:
    """A chat completion request of one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], "max_tokens": max_tokens, **fields}


def client(url: str) -> httpx2.Client:
    """An HTTP client of the adapter."""
    return httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)


def answer(http: httpx2.Client, *content: dict[str, Any], **fields: Any) -> str:
    """The text of a plain answer."""
    response = http.post("/v1/chat/completions", json=body(*content, **fields))
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def ensemble_ids(grpc_url: str, messages: list[dict[str, Any]], output_len: int) -> list[int]:
    """Stream from the ensemble with tritonclient alone: the output ids.

    Raises:
        InferenceServerException: The stream brought an error.
    """
    tensors = {
        "messages": np.array([[json.dumps(messages).encode()]], dtype=np.object_),
        "request_output_len": np.array([[output_len]], np.int32),
        "streaming": np.array([[True]]),
    }
    inputs = []
    for name, value in tensors.items():
        inputs.append(grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)).set_data_from_numpy(value))
    responses: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    ids: list[int] = []
    with grpcclient.InferenceServerClient(grpc_url) as triton:
        triton.start_stream(lambda result, error: responses.put((result, error)))
        triton.async_stream_infer("internvideo2_5", inputs, enable_empty_final_response=True)
        while True:
            result, error = responses.get(timeout=TIMEOUT_S)
            if error is not None:
                raise error
            output = result.as_numpy("output_ids")
            ids += [] if output is None else output.reshape(-1).tolist()
            if result.get_response().parameters["triton_final_response"].bool_param:
                return ids


def figures(server: RunningServer) -> dict[str, float]:
    """All figures of the project on Triton's metrics page, ``name{label}`` -> value."""
    page = httpx2.get(server.metrics_url, trust_env=False).text
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("internvideo_")
    }


def difference(server: RunningServer, before: dict[str, float], name: str) -> float:
    return figures(server).get(f"internvideo_{name}", 0.0) - before.get(f"internvideo_{name}", 0.0)
