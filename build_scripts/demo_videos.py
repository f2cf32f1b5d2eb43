"""Write videos of simple shapes, and questions about them with what counts as right.

``questions.json`` is a list of ``{"video", "codec", "format", "kind", "language", "question", "answer", "accepted", "rejected",
"held_out"}``: an answer is right if it contains an accepted form and no rejected one (`demo_model/train/grading.py`). The
files are drawn and encoded by other code than training's frames, in several codecs, sizes and frame rates.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from build_scripts.demo_model.train.film import film, sample_format
from build_scripts.demo_model.train.questions import Asker
from build_scripts.demo_model.train.scene import Scene, sample_scene
from build_scripts.demo_model.train.words import LANGUAGES

STREAM = 3_000_000_000  # far from the seeds of training
HELD_OUT_SHARE = 0.25  # of the questions


def write_videos(out: Path, seed: int, count: int, real: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Write ``count`` videos and ``questions.json``.

    Args:
        out: The directory, made if absent.
        seed: Decides everything; training uses other streams of random numbers.
        count: Number of videos.
        real: Footage without simple shapes, to be copied into the directory and asked about as well (kind "real").

    Returns:
        The questions.
    """
    out.mkdir(parents=True, exist_ok=True)
    questions: list[dict[str, Any]] = []
    console = Console(stderr=True)
    for number in track(range(count), "videos", console=console, transient=True, disable=not console.is_terminal):
        source = np.random.default_rng((STREAM, seed, number))
        video_format = sample_format(source)
        scene = sample_scene(source, width_factor=video_format.height / video_format.width)
        name = f"{seed}-{number:04d}{video_format.suffix}"
        film(scene, video_format, out / name)
        about = {"video": name, "codec": video_format.codec, "format": video_format.orientation}
        questions += [{**about, **asked} for asked in _questions(scene, random.Random(f"{seed}:{number}"))]
    for path in real:
        shutil.copyfile(path, out / path.name)
        about = {"video": path.name, "codec": "as filmed", "format": "as filmed"}
        asked_twice = [asked for turn in range(2) for asked in _questions(Scene(()), random.Random(f"{seed}:{path.name}:{turn}"))]
        questions += [{**about, **asked, "kind": "real"} for asked in asked_twice if asked["kind"] == "empty"]
    (out / "questions.json").write_text(json.dumps(questions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return questions


def _questions(scene: Scene, choices: random.Random) -> list[dict[str, Any]]:
    """Each topic that the scene allows, once a language; some in phrasings that training never used."""
    asked = []
    for language in LANGUAGES:
        for topic in Asker(scene, choices).topics():
            held_out = choices.random() < HELD_OUT_SHARE
            turn = Asker(scene, choices, held_out).ask(language, topic=topic)
            asked.append(
                {
                    "kind": turn.kind,
                    "language": language,
                    "question": turn.question,
                    "answer": turn.answer,
                    "accepted": list(turn.accepted),
                    "rejected": list(turn.rejected),
                    "held_out": held_out,
                }
            )
    return asked


def main(
    out: Annotated[Path, typer.Option(help="Directory for the videos and questions.json.")],
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Videos.")] = 150,
    real: Annotated[list[Path] | None, typer.Option(exists=True, help="A clip without simple shapes; repeatable.")] = None,
) -> None:
    """Write videos of simple shapes, and questions about them."""
    questions = write_videos(out, seed, count, real or ())
    videos = len({question["video"] for question in questions})
    Console(stderr=True).print(f"{videos} videos and {len(questions)} questions in {out}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
