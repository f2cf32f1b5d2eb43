"""Reproduce what ends Triton 2.51 itself: a model that stands still under traffic, and many calls that are cancelled.

python benchmarks/triton_faults.py standstill
python benchmarks/triton_faults.py cancels --seconds 60
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import numpy as np
import tritonclient.grpc as grpcclient
import typer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings

app = typer.Typer(no_args_is_help=True, add_completion=False)
_PATIENCE_S = 120.0


@contextlib.contextmanager
def served() -> Iterator[RunningServer]:
    """The demo model, on ports of its own."""
    ports = dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        settings = ServeSettings(device="cpu", run_directory=Path(scratch) / "run", max_restarts=10_000, **ports)
        with start(settings) as server:
            yield server


def deaths(server: RunningServer) -> tuple[int, str]:
    """How often tritonserver has died so far, and why anything did last."""
    state = json.loads(server.repository.with_name("state.json").read_text())
    return int(state["deaths"].get("tritonserver", 0)), str(state["reason"])


def wait_until_served(server: RunningServer) -> None:
    """Until everything is up again."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{server.adapter_url}/health/ready", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("it did not come back")


def stub_of(server: RunningServer, model: str) -> int:
    """The process of a model."""
    for pid in server.processes():
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if arguments[0].endswith(b"triton_python_backend_stub") and f"{model}_0_0".encode() in arguments:
                return pid
    raise LookupError(f"no process of {model}")


def question(server: RunningServer, triton: grpcclient.InferenceServerClient, tokens: int, request_id: str) -> None:
    """Begin an answer of ``tokens`` tokens on the open stream."""
    messages = [{"role": "user", "content": "Tell me a story."}]
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "messages": np.array([[json.dumps(messages).encode()]], dtype=np.object_),
        "request_output_len": np.array([[tokens]], np.int32),
        "min_tokens": np.array([[tokens]], np.int32),
        "streaming": np.array([[True]]),
    }
    inputs = [
        grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)).set_data_from_numpy(value)
        for name, value in tensors.items()
    ]
    triton.async_stream_infer("internvideo2_5", inputs, request_id=request_id, enable_empty_final_response=True)


def cancel_for(server: RunningServer, until: float, ended: Counter[str], number: int) -> None:
    """One client: ask, take three responses, cancel the call, again."""
    turn = 0
    while time.monotonic() < until:
        turn += 1
        responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            with grpcclient.InferenceServerClient(server.grpc_url, channel_args=[("grpc.enable_http_proxy", 0)]) as triton:
                triton.start_stream(lambda result, error, into=responses: into.put(error))
                question(server, triton, 400, f"cancel-{number}-{turn}")
                for _ in range(3):
                    if (error := responses.get(timeout=max(until - time.monotonic(), 1.0))) is not None:
                        raise error
                triton.stop_stream(cancel_requests=True)
            ended["cancelled"] += 1
        except (InferenceServerException, queue.Empty) as error:
            ended[f"failed: {str(error)[:60]}"] += 1
            time.sleep(0.2)


@app.command()
def cancels(
    seconds: Annotated[float, typer.Option(help="how long")] = 60.0,
    clients: Annotated[int, typer.Option(help="how many at once")] = 32,
) -> None:
    """Streams that are cancelled without a stop: how many it takes to end tritonserver (the adapter sends stops instead)."""
    ended: Counter[str] = Counter()
    with served() as server:
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=cancel_for, args=(server, until, ended, each)) for each in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until_served(server)
        died, reason = deaths(server)
    typer.echo(f"{dict(ended)}; tritonserver died {died} times{f' ({reason})' if died else ''}")


@app.command()
def standstill(
    model: Annotated[str, typer.Option(help="preprocessing, vit or tensorrt_llm")] = "preprocessing",
    repeat: Annotated[int, typer.Option(help="times for each duration")] = 3,
) -> None:
    """A model's process that is stopped and goes on, while requests come: from which duration on tritonserver ends."""
    durations = (0.5, 0.9, 1.3, 2.0, 4.0)
    with served() as server:
        for duration in durations:
            died = 0
            reason = ""
            for _ in range(repeat):
                wait_until_served(server)
                before, _ = deaths(server)
                pid = stub_of(server, model)
                done = threading.Event()
                asking = [threading.Thread(target=_ask_until, args=(server, done)) for _ in range(4)]
                for thread in asking:
                    thread.start()
                os.kill(pid, signal.SIGSTOP)
                time.sleep(duration)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                time.sleep(2.0)
                done.set()
                for thread in asking:
                    thread.join()
                after, why = deaths(server)
                died += after > before
                reason = why if after > before else reason
            typer.echo(f"{model} stood still for {duration:g} s: tritonserver died {died} of {repeat} times {reason}")


def _ask_until(server: RunningServer, done: threading.Event) -> None:
    body = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    while not done.is_set():
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.post(f"{server.openai_url}/chat/completions", json=body, timeout=_PATIENCE_S, trust_env=False)


if __name__ == "__main__":
    app()
