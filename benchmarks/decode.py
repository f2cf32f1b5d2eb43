"""Sampling and resizing the frames of videos, beside the old system's method.

``python benchmarks/decode.py VIDEO... --baseline``: 80 frames of each video to uint8 448 x 448, by the server's decoder (in its
worker process) and by the old method (decord with one thread frame by frame, Pillow's bicubic resize; then with its ToTensor
and Normalize too). The methods take turns; each one's best run counts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import decord
import numpy as np
import psutil
import typer
from PIL import Image

from benchmarks.report import surroundings, table, write
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.preprocessing.video import (
    DecodeLimits,
    DecodeRequest,
    FrameDecoder,
    FrameSampling,
    sample_indices,
)
from internvideo_server.settings import VideoReader

MEAN, STD = (np.array(values, np.float32)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
POLL_SECONDS = 0.005
Frames = np.ndarray[Any, Any]


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
        notes = (
            f"{num_frames} frames, {threads} threads. Best of {repeats} runs, the methods in turn; `cpu s`: of all threads; "
            "`MB`: peak above the idle process. "
            "The frames of `server` and `old method` were compared: equal."
        )
        for path in write(name, machine, rows, notes):
            typer.echo(path)


def measure(video: Path, num_frames: int, threads: int, repeats: int, baseline: bool, reader: str) -> list[dict[str, Any]]:
    """The rows of one video."""
    limits = DecodeLimits(memory_bytes=16 << 30, reader=cast(VideoReader, reader))
    with FrameDecoder(1, limits, threads=threads) as decoder:
        decoders = Decoders(decoder)
        methods: dict[str, tuple[Callable[[], Frames], Callable[[], float]]] = {
            "server": (lambda: decoders.decode(lambda: by_server(decoder, video, num_frames)), decoders.cpu_seconds)
        }
        if baseline:
            methods["old method"] = (lambda: by_old_method(video, num_frames), time.process_time)
            methods["old method, ToTensor, Normalize"] = (lambda: normalise(by_old_method(video, num_frames)), time.process_time)
        best = {name: (float("inf"), float("inf")) for name in methods}
        for _ in range(repeats):
            frames = {}
            for name, (run, cpu_seconds) in methods.items():
                frames[name], seconds, cpu = timed(run, cpu_seconds, decoders.wait if name == "server" else None)
                best[name] = (min(best[name][0], seconds), min(best[name][1], cpu))
            if baseline and not np.array_equal(frames["server"], frames["old method"]):
                raise SystemExit("the methods' frames differ")
        peak = decoders.peak
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
        decoder.decode(file.fileno(), DecodeRequest(sampling=FrameSampling(num_frames=num_frames)), buffer)
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


def timed(
    run: Callable[[], Frames], cpu_seconds: Callable[[], float], wait: Callable[[], None] | None
) -> tuple[Frames, float, float]:
    """Result, seconds, and CPU seconds, which are known after the wait."""
    before, began = cpu_seconds(), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - began
    if wait is not None:
        wait()
    return result, seconds, cpu_seconds() - before


class Decoders:
    """The decoder processes, of which each medium has its own; a GPU's decodes many.

    Attributes:
        peak: The most memory of one above what it began with, in bytes.
    """

    def __init__(self, decoder: FrameDecoder) -> None:
        self._decoder = decoder
        self._stays = decoder.limits.reader == "nvdec"
        self._pid = self._next()
        self._fork_server = psutil.Process(self._pid).parent()
        self.peak = 0

    def cpu_seconds(self) -> float:
        """Of all that have ended, or of the one that stays, to 10 ms."""
        if self._stays:
            times = psutil.Process(self._pid).cpu_times()
            return float(times.user + times.system)
        times = self._fork_server.cpu_times()
        return float(times.children_user + times.children_system)

    def decode(self, run: Callable[[], Frames]) -> Frames:
        """Run it while its decoder's memory is watched."""
        idle, done = memory(self._pid, "VmRSS"), threading.Event()

        def watch() -> None:
            with suppress(OSError, StopIteration):
                while not done.wait(POLL_SECONDS):
                    self.peak = max(self.peak, memory(self._pid, "VmHWM") - idle)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            return run()
        finally:
            done.set()
            thread.join()

    def wait(self) -> None:
        """For the end of the decoder that was at work, and the next one."""
        if not self._stays:
            self._pid = self._next()

    def _next(self) -> int:
        while not (pids := self._decoder.worker_pids) or pids[0] == getattr(self, "_pid", None):
            time.sleep(POLL_SECONDS)
        return pids[0]


def memory(process: int, name: str) -> int:
    """A figure of /proc/PID/status in bytes."""
    return next(
        int(line.split()[1]) << 10 for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(name)
    )


if __name__ == "__main__":
    typer.run(main)
