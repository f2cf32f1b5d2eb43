r"""Training batches: videos to render, and sequences that ask many questions about each video in one pass.

A sequence is the prompt up to the last frame, followed by whole conversations side by side. The attention mask lets each
see the prompt and itself only, and its positions go on from the prompt's, so each is what the server would be asked::

    <s>system.. <|im_start|>user\nFrame1: .. \n | question<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|> | question ..
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from build_scripts.demo_model.train.drawing import Drawing, draw, frame_times
from build_scripts.demo_model.train.questions import Asker, Turn
from build_scripts.demo_model.train.scene import Scene, sample_scene
from build_scripts.demo_model.train.words import LANGUAGES, Language
from internvideo_server.limits import TOKENS_PER_FRAME
from internvideo_server.preprocessing.chat import DEFAULT_SYSTEM_TEXT, ChatTokenizer

PADDING = 1 << 20  # the segment of unused places
NO_LABEL = -100
_CHINESE = 0.45  # share of conversations
_TURNS = [0.62, 0.25, 0.13]  # shares of conversations with 1, 2, 3 turns


@dataclass(frozen=True)
class Layout:
    """The videos of one step: for each sequence the frames of its videos, and how long the sequences are.

    ``later`` puts a second video into a second message, after a first question and its answer.
    """

    name: str
    videos: tuple[tuple[int, ...], ...]  # for each sequence
    length: int
    later: bool = False

    @property
    def frames(self) -> int:
        """Frames of all videos."""
        return sum(sum(videos) for videos in self.videos)


@dataclass(frozen=True)
class Batch:
    """One step's data; B sequences of S tokens, F frames."""

    drawings: dict[str, Tensor]  # fields of Drawing, all frames of all videos one after another: [F, ...]
    ids: Tensor  # int64 [B, S]
    rows: Tensor  # int64 [B, S] row of the visual embeddings, -1 on text
    positions: Tensor  # int64 [B, S]
    segments: Tensor  # int64 [B, S] 0: prompt; 1, 2, ..: a conversation; PADDING
    labels: Tensor  # int64 [B, S] the next token where the model is to say it, else NO_LABEL
    asked: Tensor  # int64 [B, S] where there is a label: the number of its turn in `turns`, else -1
    said: Tensor  # int64 [N] where there are labels, as places in the flattened [B * S]
    seen: Tensor  # int64 [16 * F] where each visual row stands, likewise
    turns: list[Turn]
    seed: int

    def pin_memory(self) -> Batch:
        """For the DataLoader: page-locked tensors, whose way to the GPU does not stop the CPU."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """All tensors on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        drawings = {name: change(tensor) for name, tensor in self.drawings.items()}
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in (*_FILLS, "said", "seen")}
        return replace(self, drawings=drawings, **changed)


@dataclass
class _Sequence:
    ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)  # of the token itself, not yet of the place before it

    def add(self, ids: list[int], *, segment: int = 0, first: int | None = None, turn: int = -1, row: int | None = None) -> None:
        start = len(self.ids) if first is None else first
        self.ids += ids
        self.rows += [-1] * len(ids) if row is None else range(row, row + len(ids))
        self.segments += [segment] * len(ids)
        self.positions += range(start, start + len(ids))
        self.asked += [turn] * len(ids)


class Packer:
    """Makes the batch of any step, the same one for the same seed and step.

    Args:
        tokenizer: The model's.
        seed: Of all scenes and questions.
        held_out: Ask in the phrasings that training never sees.
        timed: See ``sample_scene``.
        emphasis: See ``Asker``.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        seed: int,
        *,
        held_out: bool = False,
        timed: float = 0.0,
        emphasis: Mapping[str, float] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.held_out = held_out
        self.timed = timed
        self.emphasis = emphasis or {}
        self._encode = lru_cache(1 << 16)(tokenizer.encode_text)
        self._start, self._end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
        self._image, self._image_end = tokenizer.token_id("<img>"), tokenizer.token_id("</img>")

    def batch(self, layout: Layout, step: int, *, shapes: int | None = None, text: bool = True) -> Batch:
        """Make a batch.

        Args:
            layout: The kind of step.
            step: Its number; with the seed it decides everything.
            shapes: So many in every scene.
            text: Without it the sequences stay empty (for the auxiliary loss alone).
        """
        random_scene = np.random.default_rng((self.seed, step))
        choices = random.Random(f"{self.seed}:{step}")
        drawings: list[Drawing] = []
        sequences: list[_Sequence] = []
        turns: list[Turn] = []
        row = 0
        for counts in layout.videos:
            scenes = [sample_scene(random_scene, shapes=shapes, timed=self.timed) for _ in counts]
            drawings += [draw(s, frame_times(frames, random_scene)) for s, frames in zip(scenes, counts, strict=True)]
            sequence = _Sequence()
            if text:
                self._write(sequence, scenes, counts, row, turns, choices, layout)
            row += TOKENS_PER_FRAME * sum(counts)
            sequences.append(sequence)
        length = layout.length if text else 0
        arrays = {name: np.full((len(sequences), length), fill) for name, fill in _FILLS.items()}
        for number, sequence in enumerate(sequences):
            used = len(sequence.ids)
            for name in ("ids", "rows", "segments", "positions"):
                arrays[name][number, :used] = getattr(sequence, name)
            asked = np.array(sequence.asked[1:], dtype=np.int64)
            said = asked >= 0
            arrays["asked"][number, : used - 1] = asked
            arrays["labels"][number, : used - 1][said] = np.array(sequence.ids[1:])[said]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors["seen"] = torch.nonzero(tensors["rows"].flatten() >= 0).flatten()  # rows were given out in this order
        tensors["said"] = torch.nonzero(tensors["labels"].flatten() >= 0).flatten()
        return Batch(_joined(drawings), turns=turns, seed=self.seed * 1_000_003 + step, **tensors)

    def _write(
        self,
        sequence: _Sequence,
        scenes: list[Scene],
        counts: tuple[int, ...],
        row: int,
        turns: list[Turn],
        choices: random.Random,
        layout: Layout,
    ) -> None:
        system = choices.choice(_OTHER_SYSTEM_TEXTS) if choices.random() < 0.05 else DEFAULT_SYSTEM_TEXT
        sequence.add([self.tokenizer.token_id("<s>"), self._start, *self._encode("system\n" + system), self._end])
        sequence.add([*self._encode("\n"), self._start, *self._encode("user\n")])
        for number, frames in enumerate(counts):
            if number and layout.later:
                turn = self._asker(scenes[0], choices).ask(_language(choices))
                self._turn(sequence, turn, turns, segment=0)
                sequence.add([*self._encode("\n"), self._start, *self._encode("user\n")])
            self._frames(sequence, frames, row)
            row += frames * TOKENS_PER_FRAME
        prompt = len(sequence.ids)
        segment, misses = 1, 0
        while misses < 3:
            conversation = self._conversation(scenes, choices, later=layout.later)
            trial = _Sequence()
            said: list[Turn] = []
            for number, turn in enumerate(conversation):
                if number:
                    trial.add([*self._encode("\n"), self._start, *self._encode("user\n")])
                self._turn(trial, turn, said, segment=segment)
            if len(sequence.ids) + len(trial.ids) > layout.length:
                misses += 1
                continue
            sequence.ids += trial.ids
            sequence.rows += trial.rows
            sequence.segments += [segment] * len(trial.ids)
            sequence.positions += range(prompt, prompt + len(trial.ids))
            sequence.asked += [turn + len(turns) if turn >= 0 else -1 for turn in trial.asked]
            turns += said
            segment += 1

    def _conversation(self, scenes: list[Scene], choices: random.Random, *, later: bool) -> list[Turn]:
        count = choices.choices((1, 2, 3), _TURNS)[0]
        if not scenes:
            return self._asker(None, choices).conversation(count, _language(choices))
        which = choices.randrange(len(scenes))
        video = which + 1 if len(scenes) > 1 else None
        if later and choices.random() < 0.5:
            which, video = len(scenes) - 1, None  # no word of which video: the latest
        return self._asker(scenes[which], choices, video).conversation(count, _language(choices))

    def _asker(self, scene: Scene | None, choices: random.Random, video: int | None = None) -> Asker:
        return Asker(scene, choices, self.held_out, video, self.emphasis)

    def _frames(self, sequence: _Sequence, frames: int, row: int) -> None:
        for number in range(1, frames + 1):
            sequence.add([*self._encode(f"Frame{number}: "), self._image])
            sequence.add([0] * TOKENS_PER_FRAME, row=row + (number - 1) * TOKENS_PER_FRAME)
            sequence.add([self._image_end, *self._encode("\n")])

    def _turn(self, sequence: _Sequence, turn: Turn, turns: list[Turn], *, segment: int) -> None:
        sequence.add([*self._encode(turn.question), self._end, *self._encode("\n"), self._start], segment=segment)
        sequence.add(self._encode("assistant\n"), segment=segment)
        sequence.add([*self._encode(turn.answer), self._end], segment=segment, turn=len(turns))
        turns.append(turn)


_OTHER_SYSTEM_TEXTS = ("You are a helpful assistant.", "Answer the question briefly.", "你是一个有用的助手。")
_FILLS = {"ids": 0, "rows": -1, "positions": 0, "segments": PADDING, "labels": NO_LABEL, "asked": -1}


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to the attention scores: 0 where a place may look, else minus infinity: [B, 1, S, S]."""
    later = torch.arange(segments.shape[1], device=segments.device)
    seen = segments[:, None, :]  # [B, 1, S]
    allowed = ((seen == 0) | (seen == segments[:, :, None])) & (later[None, :] <= later[:, None])
    return torch.zeros(allowed.shape, dtype=dtype, device=segments.device).masked_fill_(~allowed, float("-inf"))[:, None]


def _language(choices: random.Random) -> Language:
    return LANGUAGES[choices.random() < _CHINESE]


def _joined(drawings: list[Drawing]) -> dict[str, Tensor]:
    names = Drawing.__dataclass_fields__
    return {name: torch.from_numpy(np.concatenate([getattr(d, name) for d in drawings])) for name in names} if drawings else {}
