"""The whole chain means something: with the demo model behind it, a frame out of place is a wrong answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from build_scripts.demo_model.train.film import Format, film
from build_scripts.demo_model.train.scene import COLOUR_NAMES, MOVES, SHAPES, Event, Scene, Thing
from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS, MODEL, client, difference, figures, text_part, until, video_part

pytestmark = pytest.mark.server

SECONDS = 3.0
FILE = Format("libx264", ".mp4", 480, 270, 16, SECONDS, 26)
PLACES = {
    "left": ((0.75, 0.4), (0.25, 0.4)),
    "right": ((0.25, 0.6), (0.75, 0.6)),
    "up": ((0.4, 0.75), (0.4, 0.25)),
    "down": ((0.6, 0.25), (0.6, 0.75)),
}


def moving(direction: Event, colour: str = "red", shape: str = "circle") -> Thing:
    first, last = PLACES[direction]
    return Thing(shape, colour, direction, first, last, (0.12, 0.12), (0.1, 0.9))  # type: ignore[arg-type]


def appearing(colour: str, shape: str, place: tuple[float, float], moment: float) -> Thing:
    return Thing(shape, colour, "appear", place, place, (0.12, 0.12), (moment, moment))  # type: ignore[arg-type]


CROSS_AND_TRIANGLE = moving("down", "purple", "cross"), appearing("orange", "triangle", (0.2, 0.3), 0.77)
TOO_YOUNG = 4  # seconds: a file written more lately may be written again, and is not cached


def write(folder: Path, name: str, *things: Thing, video_format: Format = FILE) -> Path:
    path = folder / f"{name}{FILE.suffix}"
    film(Scene(things, FILE.height / FILE.width, backdrop=4), video_format, path)
    return path


def reverse(path: Path) -> Path:
    """The same file with its pictures in the opposite order."""
    out = path.with_name(f"{path.stem}-reversed.mp4")
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        pictures = [frame.to_image() for frame in source.decode(video=0)]
        stream = target.add_stream("libx264", rate=FILE.fps)
        stream.width, stream.height, stream.pix_fmt = FILE.width, FILE.height, "yuv420p"
        stream.time_base = Fraction(1, FILE.fps)
        for picture in reversed(pictures):
            target.mux(stream.encode(av.VideoFrame.from_image(picture).reformat(format="yuv420p")))
        target.mux(stream.encode())
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write(folder, "warm", *CROSS_AND_TRIANGLE)
    return folder


@pytest.fixture(scope="module")
def demo(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The whole system with the demo model, which ends its answers: too soon for the other tests' server."""
    run = tmp_path_factory.mktemp("demo-run")
    with start(ServeSettings(device="cpu", allowed_local_media_path=(folder,), run_directory=run, **FREE_PORTS)) as running:
        yield running


def said(server: RunningServer, messages: list[dict[str, Any]]) -> str:
    with client(server.adapter_url) as http:
        fields = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0}
        response = http.post("/v1/chat/completions", json=fields)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def ask(server: RunningServer, path: Path, question: str, **options: Any) -> str:
    return said(server, [user(video_part(path, **{"num_frames": 8, **options}), text_part(question))])


def test_a_reversed_video_moves_the_other_way(demo: RunningServer, folder: Path) -> None:
    forwards = write(folder, "left", moving("left"))
    question = "Which way does the red circle move?"
    assert ask(demo, forwards, question) == "It moves to the left."
    assert ask(demo, reverse(forwards), question) == "It moves to the right."
    assert ask(demo, forwards, "红色圆形向哪个方向移动？") == "它向左移动。"
    assert ask(demo, reverse(forwards), "红色圆形向哪个方向移动？", num_frames=16) == "它向右移动。"


def test_a_cut_changes_what_happens_first_and_last(demo: RunningServer, folder: Path) -> None:
    path = write(folder, "two", appearing("green", "star", (0.3, 0.3), 0.22), appearing("blue", "square", (0.65, 0.7), 0.77))
    half = SECONDS / 2
    assert ask(demo, path, "What happens first?") == "The green star appears."
    assert ask(demo, path, "What happens first?", start=half) == "The blue square appears."
    assert ask(demo, path, "What happens last?") == "The blue square appears."
    assert ask(demo, path, "What happens last?", end=half) == "The green star appears."


def test_two_videos_of_a_conversation_are_told_apart(demo: RunningServer, folder: Path) -> None:
    one, two = write(folder, "one", moving("up")), write(folder, "other", moving("right", "yellow", "square"))
    videos = [video_part(path, num_frames=8) for path in (one, two)]
    question = "Describe the {} video."
    together = {number: said(demo, [user(*videos, text_part(question.format(number)))]) for number in ("first", "second")}
    assert together == {"first": "A red circle moves up.", "second": "A yellow square moves to the right."}
    earlier = [user(videos[0], text_part("Describe the video.")), {"role": "assistant", "content": together["first"]}]
    assert said(demo, [*earlier, user(videos[1], text_part("Describe this video."))]) == together["second"]
    assert said(demo, [*earlier, user(videos[1], text_part(question.format("first")))]) == together["first"]


def test_eight_videos_at_once_are_each_answered_right(demo: RunningServer, folder: Path) -> None:
    words = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
    videos, expected = [], []
    for number, colour in enumerate(COLOUR_NAMES):
        shape, direction = SHAPES[number % len(SHAPES)], MOVES[number % len(MOVES)]
        videos.append(write(folder, f"all-{colour}", moving(direction, colour, shape)))
        expected.append(f"{'An' if colour == 'orange' else 'A'} {colour} {shape} moves {words[direction]}.")
    with ThreadPoolExecutor(len(videos)) as pool:
        assert list(pool.map(lambda path: ask(demo, path, "Describe the video."), videos)) == expected


def test_a_second_turn_from_the_cache_is_as_right_as_a_cold_one(demo: RunningServer, folder: Path) -> None:
    warm, cold = folder / "warm.mp4", write(folder, "cold", *CROSS_AND_TRIANGLE, video_format=replace(FILE, crf=24))
    until(lambda: time.time() - warm.stat().st_ctime > TOO_YOUNG, "the file is old enough to be cached")
    answers = ["There are two shapes.", "At the end."]
    followed_up = text_part("When does the orange triangle appear?")

    def conversation(path: Path) -> list[dict[str, Any]]:
        first = user(video_part(path, num_frames=8), text_part("How many shapes are there?"))
        return [first, {"role": "assistant", "content": answers[0]}, user(followed_up)]

    assert said(demo, conversation(warm)[:1]) == answers[0]
    for path, cached in ((warm, True), (cold, False)):
        before = figures(demo)
        assert said(demo, conversation(path)) == answers[1]
        assert difference(demo, before, "cache_hits_total/embeddings") == cached
        assert difference(demo, before, "vision_frames_total") == (0 if cached else 8)
