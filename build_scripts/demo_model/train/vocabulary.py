"""The demo model's tokenizer: a sentencepiece model like InternLM2's, trained on the demo's own questions and answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from build_scripts.demo_model.train.phrasing import all_texts
from build_scripts.demo_model.train.questions import Asker
from build_scripts.demo_model.train.scene import sample_scene
from build_scripts.demo_model.train.words import COLOUR_WORDS, LANGUAGES, SHAPE_NOUNS
from build_scripts.random_tokenizer import trained, with_renamed, write_tokenizer
from internvideo_server.preprocessing.chat import DEFAULT_SYSTEM_TEXT

VOCAB_SIZE = 1536
# Chinese has no spaces: without this the commonest phrases would become pieces, and "red circle" one unlike "red square".
_WORDS = [
    *COLOUR_WORDS["zh"].values(),
    *(nouns[0] for nouns in SHAPE_NOUNS["zh"].values()),
    *("移动", "向左", "向右", "向上", "向下", "出现", "消失", "变大", "变小", "变成", "没有", "视频"),
]
_ADDED, _RENAMED = 16, 6  # tokens behind the pieces; pieces that get other names; see random_tokenizer


def write_demo_tokenizer(out: Path, seed: int) -> list[int]:
    """Write ``tokenizer.model`` and its three JSON files into ``out``; returns the ids that end an answer."""
    model = out / "tokenizer.model.part"
    model.write_bytes(_train(VOCAB_SIZE - _ADDED, seed))
    try:
        return write_tokenizer(out, VOCAB_SIZE, seed, model)
    finally:
        model.unlink()


def _train(pieces: int, seed: int) -> bytes:
    # Symbols are pieces of their own, so what stands around them changes nothing.
    return with_renamed(trained(_sentences(seed), pieces - _RENAMED, ["\n", "Frame", *_WORDS]))


def _sentences(seed: int) -> Iterator[str]:
    choices = random.Random(seed)
    for number in range(2500):
        video = choices.choice((None, None, 1, 2))
        asker = Asker(sample_scene(np.random.default_rng((seed, number))), choices, video=video)
        for turn in asker.conversation(2, LANGUAGES[number % 2]):
            yield turn.question
            yield turn.answer
    yield from all_texts()
    yield from [DEFAULT_SYSTEM_TEXT] * 50
    yield from [f"Frame{i}: " for i in range(1, 129)] + ["system", "user", "assistant"] * 50
    yield from [chr(code) for code in range(0x20, 0x7F)] * 5
