"""Scenes, questions and grading of the demo model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from build_scripts.demo_model.train.drawing import draw, frame_times
from build_scripts.demo_model.train.grading import is_right, nearly_the_same
from build_scripts.demo_model.train.questions import Asker
from build_scripts.demo_model.train.render import Renderer, patch_shapes
from build_scripts.demo_model.train.scene import COLOUR_NAMES, COLOURS, SHAPES, Scene, Thing, sample_scene
from build_scripts.demo_model.train.textures import make_bank
from build_scripts.demo_model.train.words import LANGUAGES
from build_scripts.demo_videos import write_videos
from build_scripts.evaluate_demo_model import some_of_each


def thing(event: str = "left", *, shape: str = "circle", colour: str = "red", moment: float = 0.2, **changes: object) -> Thing:
    """A thing in the middle whose event is at (or from) ``moment``."""
    values = {"start": (0.5, 0.5), "end": (0.5, 0.5), "radii": (0.1, 0.1), "window": (moment, moment)}
    return Thing(shape=shape, colour=colour, event=event, **{**values, **changes})  # type: ignore[arg-type]


def asked(scene: Scene | None, topic: str, language: str = "en", **options: object) -> str:
    return Asker(scene, random.Random(1), **options).ask(language, topic=topic).answer  # type: ignore[arg-type]


def test_answers_say_what_the_scene_shows() -> None:
    first = thing("appear", moment=0.2)
    second = thing("vanish", shape="star", colour="orange", moment=0.8)
    scene = Scene((second, first))
    assert asked(scene, "first") == "The red circle appears."
    assert asked(scene, "last", "zh") == "橙色星形消失。"
    assert asked(scene, "describe") == "A red circle appears. An orange star disappears."
    assert asked(scene, "objects") == "A red circle and an orange star."
    assert asked(scene, "count", "zh") == "有两个图形。"
    assert asked(Scene((first,)), "part_when") == "At the beginning."
    assert asked(Scene((second,)), "part_when", "zh") == "在结尾。"
    assert asked(Scene((thing("left"),)), "direction") == "It moves to the left."
    assert asked(Scene((thing("grow"),)), "direction") == "It does not move."
    assert asked(Scene((thing("recolour", to_colour="blue"),)), "change") == "It turns blue."
    assert asked(Scene(()), "describe") == "I see no simple shapes in this video."
    assert asked(None, "describe") == "There is no video to look at."


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), language=st.sampled_from(LANGUAGES), held_out=st.booleans())
def test_every_answer_is_graded_right_and_no_other_colour_or_direction_is(seed: int, language: str, held_out: bool) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    asker = Asker(scene, random.Random(seed), held_out)
    for topic in asker.topics():
        turn = asker.ask(language, topic=topic)  # type: ignore[arg-type]
        assert is_right(turn.answer, turn.accepted, turn.rejected), turn
        assert "{" not in turn.question and turn.question
        if turn.kind in ("colour", "direction", "count", "part", "yesno"):
            others = [asker.ask(language, topic=topic) for _ in range(20)]  # type: ignore[arg-type]
            for other in others:
                if other.answer != turn.answer:
                    assert not is_right(other.answer, turn.accepted, turn.rejected), (turn, other)


def test_grading_ignores_case_and_punctuation_but_not_words() -> None:
    assert is_right("  IT MOVES, to the Left!", ["moves to the left"])
    assert not is_right("It leaves", ["left"])
    assert not is_right("It is red, or blue.", ["red"], ["blue"])
    assert is_right("它向左移动。", ["左"], ["右"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_scenes_keep_their_shapes_inside_the_frame_and_their_colours_apart(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    times = np.linspace(0, 1, 9)
    colours = [c for t in scene.things for c in (t.colour, t.to_colour) if c]
    assert len(colours) == len(set(colours))
    for item in scene.things:
        centres = item.centres(times)
        assert ((centres > 0) & (centres < 1)).all()
        assert item.event not in ("left", "right") or abs(item.end[0] - item.start[0]) > 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_rendered_in_its_colour_where_the_targets_say(shape: str) -> None:
    scene = Scene((thing("still", shape=shape, colour="blue", start=(0.3, 0.6), end=(0.3, 0.6)),), backdrop=3)
    drawing = draw(scene, np.array([0.1, 0.9]))
    renderer = Renderer(make_bank([], 64, 0), torch.device("cpu"), compiled=False)
    parts = [torch.from_numpy(a) for a in (drawing.slots, drawing.shapes, drawing.back, drawing.texture)]
    frames = renderer(*parts, 0)
    middle = frames[0, :, round(0.6 * 448), round(0.3 * 448)].float()
    assert (middle - torch.tensor(COLOURS["blue"])).abs().max() < 70
    number = COLOUR_NAMES.index("blue")
    assert drawing.present[0].nonzero()[0].tolist() == [number * len(SHAPES) + SHAPES.index(shape)]
    assert drawing.places[0, number, :2].tolist() == pytest.approx([0.3, 0.6])
    patches = patch_shapes(parts[0], parts[1], 32).view(2, 32, 32)
    assert patches[0, round(0.6 * 32), round(0.3 * 32)] == 1 + SHAPES.index(shape)
    assert patches[0, 0, 0] == 0


def test_sudden_events_show_in_the_targets_at_their_time() -> None:
    drawing = draw(Scene((thing("recolour", to_colour="green", moment=0.5),)), np.array([0.2, 0.8]))
    red, green = COLOUR_NAMES.index("red"), COLOUR_NAMES.index("green")
    assert drawing.placed[:, red].tolist() == [1, 0] and drawing.placed[:, green].tolist() == [0, 1]
    drawing = draw(Scene((thing("appear", moment=0.5),)), np.array([0.2, 0.8]))
    assert drawing.present.sum(1).tolist() == [0, 1] and drawing.slots[:, 0, 6].tolist() == [0, 1]


def test_frame_times_are_those_of_the_models_sampling() -> None:
    for frames in (4, 8, 80):
        times = frame_times(frames, np.random.default_rng(frames))
        assert len(times) == frames and (np.diff(times) >= 0).all() and 0 <= times[0] and times[-1] <= 1


def test_demo_videos_are_playable_and_asked_about(tmp_path: Path) -> None:
    footage = Path(__file__).parent / "data" / "v0.mp4"
    questions = write_videos(tmp_path, seed=5, count=3, real=[footage])
    assert json.loads((tmp_path / "questions.json").read_text()) == questions
    assert {q["language"] for q in questions} == {"en", "zh"}
    assert all(is_right(q["answer"], q["accepted"], q["rejected"]) for q in questions)
    about_footage = [q for q in questions if q["video"] == footage.name]
    assert {q["kind"] for q in about_footage} == {"real"} and len({q["answer"] for q in about_footage}) == 2
    assert {q["format"] for q in questions} <= {"landscape", "square", "portrait", "as filmed"}
    for name in {q["video"] for q in questions}:
        with av.open(str(tmp_path / name)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames >= 20


def test_some_of_each_kind_and_language_come_from_all_videos_in_their_order() -> None:
    questions = [
        {"video": str(video), "kind": kind, "language": language, "number": video}
        for video in range(20)
        for kind in ("colour", "order")
        for language in LANGUAGES
        if kind == "colour" or video < 3
    ]
    some = some_of_each(questions, 5)
    assert [q["number"] for q in some] == sorted(q["number"] for q in some)
    for language in LANGUAGES:
        assert [q["number"] for q in some if (q["kind"], q["language"]) == ("colour", language)] == [0, 4, 8, 12, 16]
        assert [q["number"] for q in some if (q["kind"], q["language"]) == ("order", language)] == [0, 1, 2]


def test_phrasings_are_nearly_the_same_if_a_few_letters_come_before_or_after() -> None:
    assert nearly_the_same("Say what happens to {ref}.", "What happens to {ref}?")
    assert nearly_the_same("{ref}怎么了？", "能告诉我{ref}怎么了吗？")
    assert not nearly_the_same("What happens to {ref}?", "I would like to know what happens to {ref}.")
    assert not nearly_the_same("What happens to {ref}?", "What becomes of {ref}?")
