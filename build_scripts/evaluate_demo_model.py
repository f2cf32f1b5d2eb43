"""Ask a running server about videos of `demo_videos.py`, and write a table of how often it is right.

internvideo serve --checkpoint build_scripts/demo_model --allowed-local-media-path /tmp/videos
python build_scripts/evaluate_demo_model.py /tmp/videos --num-frames 8 --num-frames 80 --most 100
"""

from __future__ import annotations

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from build_scripts.demo_model.train.grading import is_right

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Tally:
    """Right answers of the questions of one group."""

    right: int = 0
    asked: int = 0

    def __str__(self) -> str:
        return f"{100 * self.right / self.asked:.1f} % of {self.asked}" if self.asked else "-"


def ask(client: httpx2.Client, video: Path, question: str, num_frames: int) -> str:
    """One question, decoded greedily.

    Raises:
        httpx2.HTTPStatusError: The server refused it.
    """
    part = {"type": "video_url", "video_url": {"url": video.as_uri(), "num_frames": num_frames}}
    message = {"role": "user", "content": [part, {"type": "text", "text": question}]}
    body = {"model": "InternVideo2_5", "messages": [message], "max_tokens": 64, "temperature": 0}
    answer: str = client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"]
    return answer


def some_of_each(questions: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many of each kind and language, evenly from all videos, in the order given (a video's stay together)."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, asked in enumerate(questions):
        groups[asked["kind"], asked["language"]].append(number)
    taken = [group[i * len(group) // most] for group in groups.values() for i in range(most)]  # repeats where there are fewer
    return [questions[number] for number in sorted(set(taken))]


def evaluate(
    client: httpx2.Client, videos: Path, questions: list[dict[str, Any]], num_frames: int, parallel: int
) -> list[dict[str, Any]]:
    """Every question with the server's answer under ``said`` and the verdict under ``right``."""

    def one(asked: dict[str, Any]) -> dict[str, Any]:
        said = ask(client, (videos / asked["video"]).resolve(), asked["question"], num_frames)
        return {**asked, "num_frames": num_frames, "said": said, "right": is_right(said, asked["accepted"], asked["rejected"])}

    with ThreadPoolExecutor(parallel) as pool:
        answers, bar = pool.map(one, questions), Console(stderr=True)
        return list(track(answers, f"{num_frames} frames", len(questions), console=bar, disable=not bar.is_terminal))


def tallies(answers: list[dict[str, Any]]) -> dict[str, Tally]:
    """Over all, by phrasing, language, codec and format; then by kind."""
    groups: dict[tuple[int, str], Tally] = defaultdict(Tally)
    for answer in answers:
        phrasing = "held-out" if answer["held_out"] else "trained"
        language, kind = answer["language"], answer["kind"]
        names = {"all", f"all, {phrasing}", f"all, {phrasing}, {language}", answer["codec"], answer["format"]}
        for group in (*((0, name) for name in names), (1, f"{kind}, {language}"), (1, f"{kind}, {phrasing}")):
            groups[group].asked += 1
            groups[group].right += answer["right"]
    return {name: groups[section, name] for section, name in sorted(groups)}


def main(
    videos: Annotated[Path, typer.Argument(exists=True, help="Directory of demo_videos.py; the server may read it.")],
    url: Annotated[str, typer.Option(help="Of the OpenAI API.")] = "http://127.0.0.1:9997",
    num_frames: Annotated[list[int] | None, typer.Option(help="Frames a video; repeatable. Default: 8.")] = None,
    most: Annotated[int | None, typer.Option(help="Ask at most so many questions of each kind and language.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Questions in flight.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Write every answer here, as JSON.")] = None,
) -> None:
    """Ask a running server, and show how often it is right."""
    questions = json.loads((videos / "questions.json").read_text(encoding="utf-8"))
    questions = some_of_each(questions, most) if most else questions
    counts = num_frames or [8]
    columns: list[dict[str, Tally]] = []
    answers: list[dict[str, Any]] = []
    with httpx2.Client(base_url=url, timeout=600) as client:
        for count in counts:
            answers += evaluate(client, videos, questions, count, parallel)
            columns.append(tallies(answers[-len(questions) :]))
    table = Table("questions", *(f"{count} frames" for count in counts))
    for name in columns[0]:
        table.add_row(name, *(str(column.get(name, Tally())) for column in columns))
    console.print(table)
    if out is not None:
        out.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
