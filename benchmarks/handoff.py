"""Frames on their way to the vision tower's GPU and prompt tables on theirs to the engine, beside the old system's method.

``python benchmarks/handoff.py --baseline``: two models in the real tritonserver, with nothing in them but the handing over. The
clock runs from bytes that the first one has (frames in shared memory, as a decoder left them; rows on its GPU) to bytes on the
second one's device, checked there. The profiler counts what crosses the host in both models' processes. ``--others`` measures the
ways that were tried and not taken, too (80 frames). Without a GPU the device is the CPU.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tritonclient.grpc as grpcclient
import typer

from benchmarks.laboratory import Laboratory
from benchmarks.report import surroundings, table, write

HERE = Path(__file__).resolve().parent
CUDA = torch.cuda.is_available()
PROFILED = 80  # frames: starting the profiler takes longer than all else
#: name -> what happens.
KEPT = {
    "frames: descriptor, read, 4 threads": "descriptor over a local socket, read into two pinned buffers of 16 frames in turn",
    "rows: GPU region": "Triton's GPU tensor, copied by the receiver",
}
OLD = {
    "frames: old method": "normalised float32 in the receiver's own memory, uploaded, converted to bfloat16",
    "rows: old method": "to the host, into POSIX shared memory, from there to the receiver's GPU",
}
OTHERS = {
    "frames: Triton's tensor": "Triton's host tensor, uploaded",
    "frames: Triton's tensor, pinned": "the same, by way of a pinned buffer",
    "frames: GPU tensor": "uploaded by the sender, Triton's GPU tensor",
    "frames: GPU tensor, pinned": "the same, by way of a pinned buffer",
    "frames: GPU tensor, locked": "the same, the memory page-locked for it",
    "frames: descriptor": "mapped, uploaded",
    "frames: descriptor, pinned": "mapped, by way of a pinned buffer",
    "frames: descriptor, locked": "mapped, page-locked, uploaded",
    "frames: descriptor, read": "as kept, by one thread",
    "rows: Triton's host tensor": "to the host, Triton's host tensor, uploaded",
}
ENSEMBLE = """
name: "way" platform: "ensemble" max_batch_size: 0
input [ { name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }, { name: "FRAMES" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "MS" data_type: TYPE_FP64 dims: [ 3 ] } ]
ensemble_scheduling { step [
  { model_name: "sender" model_version: -1
    input_map { key: "WAY" value: "WAY" } input_map { key: "FRAMES" value: "FRAMES" }
    output_map { key: "THING" value: "T" } output_map { key: "SENT" value: "S" } },
  { model_name: "receiver" model_version: -1
    input_map { key: "THING" value: "T" } input_map { key: "SENT" value: "S" }
    output_map { key: "MS" value: "MS" } }
] }
"""


def main(
    counts: Annotated[list[int] | None, typer.Option("--frames", help="repeatable")] = None,
    repeats: Annotated[int, typer.Option()] = 15,
    baseline: Annotated[bool, typer.Option("--baseline", help="run the old method too")] = False,
    others: Annotated[bool, typer.Option("--others", help="run the ways that were not taken")] = False,
    sender_gpu: Annotated[int, typer.Option(help="of the first model, as --vit-device cuda:1 puts the tower")] = 0,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure; print the table, and write it where a name is given, after each row."""
    counts = counts or [8, 16, 64, 80, 128, 256, 512]
    ways = {**KEPT, **(OLD if baseline else {})}
    machine, rows = surroundings("torch", "numpy", "tritonclient"), []
    device = torch.cuda.get_device_name() if CUDA else "the CPU"
    notes = (
        f"To {device}. Median of {repeats} after 3 for warming up; `arrived`: the receiver's turn came; `on device`: all is "
        "there; `first`: its first 16 frames were on their way, where frames go in parts. Rows: 16 x 4096 bfloat16 a frame. "
        + "; ".join(f"`{way}`: {text}" for way, text in {**ways, **(OTHERS if others else {})}.items())
        + "."
    )
    with tempfile.TemporaryDirectory() as directory, laboratory(Path(directory), sender_gpu) as server:
        with grpcclient.InferenceServerClient(server.url) as client:
            for count in counts:
                for way in sorted({**ways, **OTHERS} if others and count == PROFILED else ways):
                    if CUDA or "GPU tensor" not in way:
                        rows.append(measure(client, way, count, repeats))
                        typer.echo(table(rows)[-1])
                        if name:
                            write(name, machine, rows, notes)
    typer.echo("\n".join(table(rows)))


def measure(client: grpcclient.InferenceServerClient, way: str, count: int, repeats: int) -> dict[str, Any]:
    """One row."""
    values = {"WAY": np.array([way.encode()], dtype=object), "FRAMES": np.array([count], np.int32)}
    inputs = [
        grpcclient.InferInput(key, [1], kind).set_data_from_numpy(values[key])
        for key, kind in (("WAY", "BYTES"), ("FRAMES", "INT32"))
    ]
    runs = [client.infer("way", inputs).as_numpy("MS") for _ in range(repeats + 3)][3:]
    crossed: list[Any] = profile(client, inputs) if CUDA and count == PROFILED else ["-", "-", "-"]
    arrived, done, first = (statistics.median(float(run[i]) for run in runs) for i in range(3))
    return {
        "frames": count,
        "way": way,
        "arrived ms": arrived,
        "on device ms": done,
        "slowest ms": max(float(run[1]) for run in runs),
        "first ms": first or "-",
        "MB to host": crossed[0],
        "MB from host": crossed[1],
        "MB between GPUs": crossed[2],
    }


def profile(client: grpcclient.InferenceServerClient, inputs: list[grpcclient.InferInput]) -> list[float]:
    """Megabytes of one request's copies to the host, from it, and between GPUs, in both models."""
    count = grpcclient.InferInput("FRAMES", [1], "INT32").set_data_from_numpy(np.array([0], np.int32))

    def control(word: str) -> list[float]:
        way = grpcclient.InferInput("WAY", [1], "BYTES").set_data_from_numpy(np.array([word.encode()], dtype=object))
        values: list[float] = client.infer("way", [way, count]).as_numpy("MS").tolist()
        return values

    control("profile: start")
    client.infer("way", inputs)
    return control("profile: stop")


def laboratory(directory: Path, sender_gpu: int) -> Laboratory:
    """tritonserver with the two models."""
    for model in ("sender", "receiver"):
        (directory / "models" / model / "1").mkdir(parents=True)
        shutil.copy(HERE / "handoff_models" / model / "config.pbtxt", directory / "models" / model)
        shutil.copy(HERE / "handoff_models" / model / "model.py", directory / "models" / model / "1")
        shutil.copy(HERE / "handoff_models" / "profiled.py", directory / "models" / model / "1")
    (directory / "models" / "way" / "1").mkdir(parents=True)
    (directory / "models" / "way" / "config.pbtxt").write_text(ENSEMBLE)
    pools = [f"--cuda-memory-pool-byte-size={gpu}:{1 << 30}" for gpu in {0, sender_gpu}] if CUDA else []
    return Laboratory(directory, pools, {"HANDOFF_SENDER": f"cuda:{sender_gpu}"})


if __name__ == "__main__":
    typer.run(main)
