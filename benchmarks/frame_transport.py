"""How frames can go from one Python model of Triton to the next one's GPU, measured through the real server.

``python benchmarks/frame_transport.py``: two models with the tensors of `preprocessing` and `vit` and nothing else in them. The
clock runs from frames that lie in the first model's memory, as a decoder left them, to frames on the second one's device. Every
frame is checked. Without a GPU the device is the CPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tritonclient.grpc as grpcclient
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import surroundings, table, write
from internvideo_server.launch import find_tritonserver
from internvideo_server.launch._backends import build_backends
from internvideo_server.launch._ports import resolve_ports

HERE = Path(__file__).resolve().parent
CUDA = torch.cuda.is_available()
#: name -> what happens.
WAYS = {
    "tensor": "Triton's tensor, pageable upload",
    "tensor staged": "Triton's tensor, copied to one pinned buffer, uploaded",
    "tensor chunks": "Triton's tensor, through two pinned buffers of 16 frames",
    "gpu pageable": "uploaded by the sender, Triton's GPU tensor",
    "gpu pinned": "copied to a pinned buffer and uploaded by the sender, Triton's GPU tensor",
    "gpu registered": "page-locked in place and uploaded by the sender, Triton's GPU tensor",
    "memfd": "descriptor over a local socket, pageable upload",
    "memfd staged": "descriptor, copied to one pinned buffer, uploaded",
    "memfd chunks": "descriptor, through two pinned buffers of 16 frames",
    "memfd read": "descriptor, read (not mapped) into two pinned buffers of 16 frames",
    "memfd read threads": "the same, each buffer by four threads",
    "memfd registered": "descriptor, page-locked in place, uploaded",
}
ENSEMBLE = """
name: "way" platform: "ensemble" max_batch_size: 0
input [ { name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }, { name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "MS" data_type: TYPE_FP64 dims: [ 4 ] } ]
ensemble_scheduling { step [
  { model_name: "sender" model_version: -1
    input_map { key: "WAY" value: "WAY" } input_map { key: "COUNT" value: "COUNT" }
    output_map { key: "FRAMES" value: "F" } output_map { key: "BEGAN" value: "B" } output_map { key: "SENT_WAY" value: "S" } },
  { model_name: "receiver" model_version: -1
    input_map { key: "FRAMES" value: "F" } input_map { key: "BEGAN" value: "B" } input_map { key: "SENT_WAY" value: "S" }
    output_map { key: "MS" value: "MS" } }
] }
"""


def main(
    counts: Annotated[list[int] | None, typer.Option("--frames", help="repeatable")] = None,
    repeats: Annotated[int, typer.Option()] = 15,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure, print the table, and write it where a name is given."""
    counts = counts or [8, 80, 512]
    machine, rows = surroundings("torch", "numpy", "tritonclient", "nvidia-pytriton"), []
    with tempfile.TemporaryDirectory() as directory:
        with Server(Path(directory)) as server, grpcclient.InferenceServerClient(server.url) as client:
            for count in counts:
                for way in [way for way in WAYS if CUDA or not way.startswith("gpu")]:
                    try:
                        rows.append(measure(client, way, count, repeats))
                    except Exception as error:  # one way that fails must not cost the others
                        typer.echo(f"{way}, {count} frames: {error}")
                    else:
                        typer.echo(rows[-1])
    typer.echo("\n".join(table(rows)))
    if name:
        options = " ".join(f"--frames {count}" for count in counts)
        notes = (
            f"Median of {repeats} after 3 for warming up. `arrived`: the receiver's turn has come; `on device`: all frames are "
            "there; `first 16`: the first chunk is on its way, where frames go in chunks. "
            + "; ".join(f"`{way}`: {text}" for way, text in WAYS.items())
            + "."
        )
        for path in write(name, machine, rows, f"python benchmarks/frame_transport.py {options} --repeats {repeats}", notes):
            typer.echo(path)


def measure(client: grpcclient.InferenceServerClient, way: str, count: int, repeats: int) -> dict[str, Any]:
    """One row."""
    values = {"WAY": np.array([way.encode()], dtype=object), "COUNT": np.array([count], np.int32)}
    inputs = [
        grpcclient.InferInput(key, [1], kind).set_data_from_numpy(values[key])
        for key, kind in (("WAY", "BYTES"), ("COUNT", "INT32"))
    ]
    runs = [client.infer("way", inputs).as_numpy("MS") for _ in range(repeats + 3)][3:]
    arrived, done, first, on_gpu = (statistics.median(run[i] for run in runs) for i in range(4))
    return {
        "frames": count,
        "way": way,
        "arrived ms": float(arrived),
        "on device ms": float(done),
        "slowest ms": float(max(run[1] for run in runs)),
        "first 16 ms": float(first) if first else "-",
        "arrived on GPU": "yes" if on_gpu else "no",
    }


class Server:
    """tritonserver with the two models."""

    def __init__(self, directory: Path) -> None:
        triton = find_tritonserver()
        repository = directory / "models"
        for model in ("sender", "receiver"):
            (repository / model / "1").mkdir(parents=True)
            shutil.copy(HERE / "transport_models" / model / "config.pbtxt", repository / model)
            shutil.copy(HERE / "transport_models" / model / "model.py", repository / model / "1")
        (repository / "way" / "1").mkdir(parents=True)
        (repository / "way" / "config.pbtxt").write_text(ENSEMBLE)
        (directory / "none").mkdir()
        build_backends(triton, directory / "none", directory / "backends")
        ports = resolve_ports(dict.fromkeys(("--http-port", "--grpc-port", "--metrics-port"), ("127.0.0.1", 0)))
        self.url = f"127.0.0.1:{ports['--grpc-port']}"
        self._command = [str(triton.binary), f"--model-repository={repository}", f"--backend-directory={directory / 'backends'}"]
        self._command += ["--disable-auto-complete-config", *(f"{flag}={port}" for flag, port in ports.items())]
        self._command += [f"--backend-config=python,shm-region-prefix-name=transport_{os.getpid()}_"]
        if CUDA:
            self._command.append(f"--cuda-memory-pool-byte-size=0:{1 << 30}")
        self._environment, self._log = triton.environment(os.environ), directory / "log"

    def __enter__(self) -> Server:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        with grpcclient.InferenceServerClient(self.url) as client:
            while True:
                try:
                    if client.is_server_ready():
                        return self
                except Exception:  # not listening yet
                    pass
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise SystemExit(self._log.read_text()[-3000:])
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()


if __name__ == "__main__":
    typer.run(main)
