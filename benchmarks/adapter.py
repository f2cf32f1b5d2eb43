"""What the adapter costs: CPU a token and time to the first token, HTTP beside tritonclient, in one run.

``python -m benchmarks.adapter`` starts a real tritonserver and an adapter before it, each in processes of its own. Triton's model
is a stand-in: it answers at once, and then gives every answer under way a token in each step of 25 ms, as an engine does.
``--streams`` answers of ``--tokens`` tokens run at once, in turn over HTTP and by tritonclient. `CPU a token`: of the adapter's
process, user and system, all of the requests' costs included; `CPU a request`: of answers of one token; `tritonclient's`: of this
process, which asks. `first token`: median over all answers. HTTP is asked by bare sockets: a client library's own costs, which
are several times the adapter's, would hide what is measured on a machine of few cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import httpx2
import numpy as np
import tritonclient.grpc.aio as grpcclient
import typer
import uvloop
from tokenizers import Tokenizer, decoders, models

from benchmarks.laboratory import Laboratory
from benchmarks.report import surroundings, table, write
from internvideo_server.launch import ADAPTER_ENVIRONMENT

HERE = Path(__file__).resolve().parent
MODEL = "InternVideo2_5"
ENSEMBLE = "internvideo2_5"
QUESTION = [{"role": "user", "content": "What is this?"}]
WORDS = [f"▁word{n}" for n in range(100)]
ONES = 10  # answers of one token that each stream asks for


class HttpStream(asyncio.Protocol):
    """One connection, for one answer after another."""

    def __init__(self) -> None:
        self._first_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, tokens: int) -> float:
        """Seconds to the first token, once the answer has ended."""
        body = json.dumps({"model": MODEL, "messages": QUESTION, "stream": True, "max_tokens": tokens}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began, self._first_s = time.perf_counter(), 0.0
        self._transport.write(head.encode() + body)
        await self._ended
        return self._first_s - began

    def data_received(self, data: bytes) -> None:
        if not self._first_s and b"word" in data:
            self._first_s = time.perf_counter()
        if b"[DONE]" in data:
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(ConnectionError("the adapter closed the connection"))


async def over_grpc(client: grpcclient.InferenceServerClient, tokens: int) -> float:
    """Seconds to the first token, once the answer has ended."""
    began, first = time.perf_counter(), 0.0
    values = {
        "messages": np.array([[json.dumps(QUESTION).encode()]], np.object_),
        "request_output_len": np.array([[tokens]], np.int32),
    }
    kinds = {"messages": "BYTES", "request_output_len": "INT32"}

    async def request() -> AsyncIterator[dict[str, Any]]:
        inputs = [grpcclient.InferInput(name, [1, 1], kinds[name]).set_data_from_numpy(value) for name, value in values.items()]
        yield {"model_name": ENSEMBLE, "inputs": inputs}

    async for result, error in client.stream_infer(request()):
        if error is not None:
            raise error
        if not first and result.as_numpy("output_ids").size:
            first = time.perf_counter() - began
    return first


async def measure(port: int, triton: str, pid: int, streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One row."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(HttpStream, "127.0.0.1", port) for _ in range(streams)]
    firsts: dict[str, list[float]] = {"http": [], "grpc": []}
    spent = dict.fromkeys(("token", "request", "grpc"), 0.0)
    began = time.perf_counter()
    async with grpcclient.InferenceServerClient(triton) as client:
        http: list[Callable[[int], Awaitable[float]]] = [protocol.ask for _, protocol in made]
        direct: list[Callable[[int], Awaitable[float]]] = [lambda count: over_grpc(client, count)] * streams
        for ways in (http, direct):
            await asyncio.gather(*(ask(4) for ask in ways))  # what is done once is done
        for _ in range(rounds):
            before = cpu_seconds(pid)
            for _ in range(ONES):
                firsts["http"] += await asyncio.gather(*(ask(1) for ask in http))
            spent["request"] += cpu_seconds(pid) - before
            for _ in range(ONES):
                firsts["grpc"] += await asyncio.gather(*(ask(1) for ask in direct))
            before, began = cpu_seconds(pid), time.perf_counter()
            await asyncio.gather(*(ask(tokens) for ask in http))
            spent["token"] += cpu_seconds(pid) - before
            wall = time.perf_counter() - began
            before = time.process_time()
            await asyncio.gather(*(ask(tokens) for ask in direct))
            spent["grpc"] += time.process_time() - before
    for transport, _ in made:
        transport.abort()
    answers = streams * rounds
    return {
        "streams": streams,
        "CPU a token, ms": round(1000 * spent["token"] / (answers * tokens), 3),
        "tritonclient's, ms": round(1000 * spent["grpc"] / (answers * tokens), 3),
        "CPU a request, ms": round(1000 * spent["request"] / (answers * ONES), 2),
        "tokens/s": round(streams * tokens / wall),
        "first token HTTP, ms": round(1000 * statistics.median(firsts["http"]), 1),
        "first token gRPC, ms": round(1000 * statistics.median(firsts["grpc"]), 1),
    }


def cpu_seconds(pid: int) -> float:
    """Of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def laboratory(directory: Path) -> Laboratory:
    """tritonserver with the stand-in."""
    shutil.copytree(HERE / "adapter_models", directory / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (directory / "models" / ENSEMBLE / "1").mkdir()
    shutil.copy(HERE / "adapter_models" / ENSEMBLE / "model.py", directory / "models" / ENSEMBLE / "1")
    return Laboratory(directory)


def make_files(folder: Path) -> Path:
    """A tokenizer of one token a word, and an engine's config.json."""
    tokens = ["<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"build_config": {"max_seq_len": 32768}}))
    return folder / "tokenizer.json"


def main(
    streams: Annotated[list[int], typer.Option(help="answers under way at once; repeatable")] = [1, 16, 64],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="of each answer")] = 200,
    rounds: Annotated[int, typer.Option(help="of each row")] = 3,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    machine = surroundings("uvicorn", "uvloop", "grpcio", "tritonclient")
    with tempfile.TemporaryDirectory() as folder, laboratory(Path(folder)) as triton:
        command = [sys.executable, "-m", "internvideo_client.adapter", f"--triton={triton.url}", f"--port={port}"]
        command += [f"--tokenizer={make_files(Path(folder))}", "--log-level=error"]
        with subprocess.Popen(command, env=ADAPTER_ENVIRONMENT | os.environ) as adapter:
            try:
                wait_for(f"http://127.0.0.1:{port}/ping")
                rows = [uvloop.run(measure(port, triton.url, adapter.pid, each, tokens, rounds)) for each in streams]
            finally:
                adapter.send_signal(signal.SIGINT)
    if name:
        notes = f"{rounds} rounds; {tokens} tokens an answer, one each 25 ms; {ONES} answers of one token for the rest."
        write(name, machine, rows, notes)
    typer.echo("\n".join(table(rows)))


def wait_for(url: str) -> None:
    """Until it answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx2.get(url, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer")


if __name__ == "__main__":
    typer.run(main)
