"""How long it takes to know every frame of long videos, beside ``ffprobe -count_packets``.

``python benchmarks/packets.py VIDEO...``: opening the file and listing all its packets, as the decoder does for each video, and
ffprobe's run (its start included) in turn; each one's best run counts. Use it in wall time on a quiet machine, in CPU time else.
"""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import surroundings, table, write
from internvideo_server.preprocessing.video.inspect import timeline_of

FFPROBE = "ffprobe -v error -count_packets -select_streams v:0 -show_entries stream=nb_read_packets".split()


def main(
    videos: Annotated[list[Path], typer.Argument(help="video files")],
    repeats: Annotated[int, typer.Option(help="runs of each")] = 5,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Measure, print the table, and write it where a name is given."""
    machine, rows = surroundings("av", "numpy"), [measure(video, repeats) for video in videos]
    typer.echo("\n".join(table(rows)))
    if name:
        for path in write(name, machine, rows, f"Best of {repeats} runs, in turn."):
            typer.echo(path)


def measure(video: Path, repeats: int) -> dict[str, Any]:
    """The row of one video."""
    frames, ours, ours_cpu, theirs, theirs_cpu = 0, *[float("inf")] * 4
    for _ in range(repeats):
        began, cpu = time.perf_counter(), time.process_time()
        frames = timeline_of(str(video)).frame_count
        ours, ours_cpu = min(ours, time.perf_counter() - began), min(ours_cpu, time.process_time() - cpu)
        began, cpu = time.perf_counter(), children_seconds()
        subprocess.run([*FFPROBE, str(video)], check=True, capture_output=True)
        theirs, theirs_cpu = min(theirs, time.perf_counter() - began), min(theirs_cpu, children_seconds() - cpu)
    return {
        "video": video.name,
        "frames": frames,
        "s": ours,
        "cpu s": ours_cpu,
        "ffprobe s": theirs,
        "ffprobe cpu s": theirs_cpu,
        "ratio": ours / theirs,
        "cpu ratio": ours_cpu / theirs_cpu,
    }


def children_seconds() -> float:
    """CPU time of the programs that were run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)
