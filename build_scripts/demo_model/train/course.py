"""What a run is shown, step by step: how many frames a video has, how many videos a conversation, and what is asked most."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from build_scripts.demo_model.train.packing import Batch, Layout, Packer
from internvideo_server.preprocessing.chat import ChatTokenizer

_VISION_ONLY = 0.12  # share of the steps from scratch, at the start; two thirds of them with one shape
_LENGTH_STEP = 64  # tokens; lengths that are multiples of it suit the attention kernels


@dataclass(frozen=True)
class Course:
    """The kinds of steps with their shares, and the kinds of scenes and questions.

    Args:
        layouts: By name.
        shares: How often each layout comes, after ``vision_only``.
        vision_only: Share of the steps, at the start, that have no text.
        early_shares: How often each layout comes during those.
        timed: See ``sample_scene``.
        emphasis: See ``Asker``.
    """

    layouts: Mapping[str, Layout]
    shares: Mapping[str, float]
    vision_only: float = 0.0
    early_shares: Mapping[str, float] = field(default_factory=dict)
    timed: float = 0.0
    emphasis: Mapping[str, float] = field(default_factory=dict)

    def packer(self, tokenizer: ChatTokenizer, seed: int) -> Packer:
        """Makes its batches."""
        return Packer(tokenizer, seed, timed=self.timed, emphasis=self.emphasis)


def layouts(frames: int) -> dict[str, Layout]:
    """The kinds of steps that are scored, each of exactly ``frames`` frames (or none): static shapes compile once."""
    made = [
        Layout("0", ((),) * max(frames // 8, 1), 512),
        _filled("4", (4,), frames, 448),
        _filled("8", (8,), frames, 768),
        _filled("12", (12,), frames, 832),
        _filled("16", (16,), frames, 960),
        _filled("32", (32,), frames, 1536),
        _filled("64", (64,), frames, 2304),
        _filled("80", (80,), frames, 2880),
        _filled("128", (128,), frames, 4096),
        _filled("8+8", (8, 8), frames, 1024),
        _filled("8,8", (8, 8), frames, 1024, later=True),
    ]
    return {layout.name: layout for layout in made if layout is not None}


def from_scratch(frames: int) -> Course:
    """Vision first, with the losses on patches and frames alone; then questions, mostly about short videos."""
    shares = {"0": 0.03, "4": 0.06, "8": 0.38, "16": 0.19, "32": 0.1, "80": 0.09, "128": 0.06, "8+8": 0.045, "8,8": 0.045}
    return Course(layouts(frames), shares, _VISION_ONLY, {"4": 0.2, "8": 0.6, "16": 0.2})


def refinement(frames: int) -> Course:
    """For a model that sees: videos of every length, two of any lengths in a conversation, when and in which order most."""
    kinds: dict[str, tuple[Layout | None, float]] = {
        name: (layout, _SHORT[name]) for name, layout in layouts(frames).items() if name in _SHORT
    }
    for each in range(20, 129, 4):
        kinds[str(each)] = _filled(str(each), (each,), frames, _length(each)), 0.024 if each < 48 else 0.02
    for pair in ((16, 16), (12, 4), (4, 20), (8, 28), (32, 16), (24, 40), (40, 32), (64, 64)):
        for later in (False, True):
            name = f"{pair[0]}{',' if later else '+'}{pair[1]}"
            kinds[name] = _filled(name, pair, frames, _length(sum(pair)), later=later), 0.011
    return Course(
        {name: layout for name, (layout, _) in kinds.items() if layout is not None},
        {name: share for name, (_, share) in kinds.items()},
        timed=0.5,
        emphasis={"part_when": 2.0, "part_what": 2.0, "first": 1.5, "last": 1.5, "first_which": 1.5, "last_which": 1.5},
    )


_SHORT = {"0": 0.03, "4": 0.02, "8": 0.12, "12": 0.05, "16": 0.06, "8+8": 0.03, "8,8": 0.03}


def _length(frames: int) -> int:
    """Tokens of a sequence: the prompt of so many frames, and more room for questions the fewer sequences a step has."""
    return -(-(608 + 33 * frames) // _LENGTH_STEP) * _LENGTH_STEP


def _filled(name: str, videos: tuple[int, ...], frames: int, length: int, *, later: bool = False) -> Layout | None:
    """As many sequences with these videos as go into ``frames`` frames, or none; what is left over is a video of its own."""
    count, rest = divmod(frames, sum(videos))
    if not count:
        return None
    return Layout(name, (videos,) * count + (((rest,),) if rest else ()), length, later)


class Steps(torch.utils.data.Dataset[Batch]):
    """The batches of a training run by step number, for a DataLoader with workers."""

    def __init__(self, packer: Packer, course: Course, steps: int) -> None:
        self.packer, self.course, self.steps = packer, course, steps

    def __getitem__(self, step: int) -> Batch:
        choice = random.Random(f"layout:{self.packer.seed}:{step}")
        course, share = self.course, step / self.steps
        seeing = share < course.vision_only
        shares = course.early_shares if seeing else course.shares
        names = [name for name in shares if name in course.layouts]
        name = choice.choices(names, [shares[name] for name in names])[0]
        shapes = 1 if share < 2 / 3 * course.vision_only else None
        batch = self.packer.batch(course.layouts[name], step, shapes=shapes, text=not seeing)
        return replace(batch, turns=[])  # only scoring needs them, and pickling them costs more than all the rest
