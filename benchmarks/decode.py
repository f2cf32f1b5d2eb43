"""Sampling and resizing the frames of videos, beside the old system's method.

``python benchmarks/decode.py VIDEO... --baseline``: 80 frames of each video to uint8 448 x 448, by the server's decoder (in its
worker process) and by the old method (decord with one thread frame by frame, Pillow's bicubic resize; then with its ToTensor
and Normalize too). The methods take turns; each one's best run counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import decord
import numpy as np
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import surroundings, table, write
from internvideo_server.video import DecodeLimits, DecodeRequest, FrameBuffer, FrameDecoder, ReaderName, Sampling, sample_indices

MEAN, STD = (np.array(values, np.float32)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
LOADING_SECONDS = 3.0  # the worker's compiled resize comes a moment after its start
Frames = np.ndarray


def main(
    videos: Annotated[list[Path], typer.Argument(help="video files")],
    num_frames: Annotated[int, typer.Option()] = 80,
    threads: Annotated[int, typer.Option(help="of the decoder; 0: the machine's cores")] = 0,
    repeats: Annotated[int, typer.Option(help="runs of each method")] = 5,
    baseline: Annotated[bool, typer.Option("--baseline", help="run the old method too")] = False,
    reader: Annotated[str, typer.Option(help="of the decoder: auto, pyav, nvdec, decord")] = "auto",
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure, print the table, and write it where a name is given."""
    threads = threads or len(os.sched_getaffinity(0))
    machine, rows = surroundings("av", "decord", "numba", "pillow", "numpy"), []
    for video in videos:
        rows += measure(video, num_frames, threads, repeats, baseline, reader)
        typer.echo("\n".join(table(rows)))
    if name:
        options = f"--num-frames {num_frames} --threads {threads} --repeats {repeats}" + " --baseline" * baseline
        options += f" --reader {reader}" * (reader != "auto")
        command = f"python benchmarks/decode.py {' '.join(video.name for video in videos)} {options}"
        notes = (
            f"Best of {repeats} runs, the methods in turn; `cpu s`: of all threads; `MB`: peak above the idle process. "
            "The frames of `server` and `old method` were compared: equal."
        )
        for path in write(name, machine, rows, command, notes):
            typer.echo(path)


def measure(video: Path, num_frames: int, threads: int, repeats: int, baseline: bool, reader: str) -> list[dict[str, Any]]:
    """The rows of one video."""
    limits = DecodeLimits(memory_bytes=16 << 30, reader=cast(ReaderName, reader))
    with FrameDecoder(1, limits, threads=threads) as decoder:
        worker = decoder.worker_pids[0]
        time.sleep(LOADING_SECONDS)
        idle = memory(worker, "VmRSS")
        methods: dict[str, tuple[Callable[[], Frames], int]] = {"server": (lambda: by_server(decoder, video, num_frames), worker)}
        if baseline:
            methods["old method"] = (lambda: by_old_method(video, num_frames), os.getpid())
            methods["old method, ToTensor, Normalize"] = (lambda: normalise(by_old_method(video, num_frames)), os.getpid())
        best = {name: (float("inf"), float("inf")) for name in methods}
        for _ in range(repeats):
            frames = {}
            for name, (run, process) in methods.items():
                frames[name], seconds, cpu = timed(run, process)
                best[name] = (min(best[name][0], seconds), min(best[name][1], cpu))
            if baseline and not np.array_equal(frames["server"], frames["old method"]):
                raise SystemExit("the methods' frames differ")
        peak = memory(worker, "VmHWM") - idle
    old = best.get("old method")
    return [
        {
            "video": video.name,
            "method": name,
            "s": seconds,
            "cpu s": cpu,
            "times as fast": old[0] / seconds if old else "-",
            "times less cpu": old[1] / cpu if old else "-",
            "MB": peak >> 20 if name == "server" else "-",
        }
        for name, (seconds, cpu) in best.items()
    ]


def by_server(decoder: FrameDecoder, video: Path, num_frames: int) -> Frames:
    """uint8 [T, 3, 448, 448]."""
    with open(video, "rb") as file, FrameBuffer() as buffer:
        decoder.decode(file.fileno(), DecodeRequest(sampling=Sampling(num_frames=num_frames)), buffer)
        return buffer.frames()


def by_old_method(video: Path, num_frames: int) -> Frames:
    """uint8 [T, 3, 448, 448]."""
    reader = decord.VideoReader(str(video), num_threads=1)
    frames = np.empty((num_frames, 3, 448, 448), np.uint8)
    for frame, index in zip(frames, sample_indices(len(reader), reader.get_avg_fps(), num_frames), strict=True):
        picture = Image.fromarray(reader[index].asnumpy()).resize((448, 448), Image.Resampling.BICUBIC)
        frame[:] = np.asarray(picture).transpose(2, 0, 1)
    return frames


def normalise(frames: Frames) -> Frames:
    """float32 [T, 3, 448, 448], frame by frame as torchvision's transforms."""
    return np.stack([(frame.astype(np.float32) / np.float32(255) - MEAN) / STD for frame in frames])


def timed(run: Callable[[], Frames], process: int) -> tuple[Frames, float, float]:
    """Result, seconds, and CPU seconds of a process."""
    before, began = cpu_seconds(process), time.perf_counter()
    result = run()
    return result, time.perf_counter() - began, cpu_seconds(process) - before


def cpu_seconds(process: int) -> float:
    """Of all its threads, to 10 ms."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int, name: str) -> int:
    """A figure of /proc/PID/status in bytes."""
    return next(
        int(line.split()[1]) << 10 for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(name)
    )


if __name__ == "__main__":
    typer.run(main)
