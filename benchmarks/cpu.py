"""What two cores do without a GPU: starts, first tokens and throughput of the demo model, and of a tiny one of the real layout.

``python -m benchmarks.cpu``: `cold`: with nothing exported yet; `warm`: the next start. The files of this project are in the page
cache in both. First tokens are medians of clips that no cache knows, `second turn` is another question about one of them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.clips import make_clips
from benchmarks.end_to_end import measure
from benchmarks.report import ROOT, surroundings, table, write
from benchmarks.served import served
from build_scripts.make_checkpoint import make_checkpoint
from internvideo_client.load import Server, media_part
from internvideo_server.settings import ServeSettings


def main(
    video: Annotated[Path, typer.Argument(help="a video file")] = ROOT / "examples" / "demo.mp4",
    models: Annotated[list[str], typer.Option("--model", help="demo, tiny; repeatable")] = ["demo", "tiny"],  # noqa: B006 (typer's form)
    frames: Annotated[list[int], typer.Option(help="of a video; repeatable")] = [8, 80],  # noqa: B006
    most_streams: Annotated[int, typer.Option(help="at once, about the fewest frames")] = 64,
    new_tokens: Annotated[int, typer.Option()] = 64,
    videos: Annotated[int, typer.Option(help="asked about one after another")] = 4,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "cpu",
) -> None:
    """Measure, print the table, and write it."""
    machine, rows = surroundings("torch", "transformers", "numpy"), []
    loads = {(count, 1): videos for count in frames} | {(min(frames), most_streams): most_streams}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        os.environ["INTERNVIDEO_CACHE"] = str(folder / "cache")
        clips = make_clips(video, folder / "clips", 2 + sum(loads.values()), max(frames))
        make_checkpoint(folder / "tiny")

        def clip(number: int, count: int) -> list[dict[str, Any]]:
            return [media_part(clips[number].as_uri(), {"num_frames": count})]

        for model in models:
            checkpoint = None if model == "demo" else folder / model
            options = ServeSettings(checkpoint=checkpoint, device="cpu", allowed_local_media_path=(folder,), max_queue_size=256)
            with served(options) as running:
                cold = running.start_s
            with served(options) as running:
                *alone, together = measure(Server(running.url), clip, loads, 2, new_tokens, running.processes)
                rows.append(
                    {
                        "model": model,
                        "start cold s": cold,
                        "start warm s": running.start_s,
                        **{f"first token s, {row['frames']} frames": row["first token s"] for row in alone},
                        "second turn s": alone[-1]["second turn s"],
                        "tokens/s": alone[0]["tokens/s"],
                        f"tokens/s, {most_streams} streams": together["tokens/s"],
                        f"videos/s, {most_streams} streams": together["videos/s"],
                        "host MiB": together["host MiB"],
                    }
                )
            typer.echo("\n".join(table(rows)))
    write(name, machine, rows, f"{new_tokens} tokens of answer, {video.name}.")


if __name__ == "__main__":
    typer.run(main)
