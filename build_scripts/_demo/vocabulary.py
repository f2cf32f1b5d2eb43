"""The demo model's tokenizer: a sentencepiece model like InternLM2's, trained on the demo's own questions and answers."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from transformers.utils import sentencepiece_model_pb2_new as model_pb2  # see _random_tokenizer

from build_scripts._demo.phrasing import all_texts
from build_scripts._demo.questions import Asker
from build_scripts._demo.scene import sample_scene
from build_scripts._demo.words import COLOUR_WORDS, LANGUAGES, SHAPE_NOUNS
from build_scripts._random_tokenizer import write_tokenizer
from internvideo_server.chat import DEFAULT_SYSTEM_TEXT

VOCAB_SIZE = 1536
# Chinese has no spaces: without this the commonest phrases would become pieces, and "red circle" one unlike "red square".
_WORDS = [
    *COLOUR_WORDS["zh"].values(),
    *(nouns[0] for nouns in SHAPE_NOUNS["zh"].values()),
    *("移动", "向左", "向右", "向上", "向下", "出现", "消失", "变大", "变小", "变成", "没有", "视频"),
]
_ADDED, _RENAMED, _FIRST_RENAMED = 16, 6, 141  # tokens behind the pieces; pieces that get other names; see _random_tokenizer


def write_demo_tokenizer(out: Path, seed: int) -> list[int]:
    """Write ``tokenizer.model`` and its three JSON files into ``out``; returns the ids that end an answer."""
    model = out / "tokenizer.model.part"
    model.write_bytes(_train(VOCAB_SIZE - _ADDED, seed))
    try:
        return write_tokenizer(out, VOCAB_SIZE, seed, model)
    finally:
        model.unlink()


def _train(pieces: int, seed: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces - _RENAMED,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        user_defined_symbols=["\n", "Frame", *_WORDS],  # pieces of their own, so what stands around them changes nothing
        num_threads=1,  # the same model on every machine
        pad_id=-1,
        minloglevel=2,
    )
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    for i in range(_RENAMED):
        name = f"[UNUSED_TOKEN_{_FIRST_RENAMED + i}]"
        proto.pieces.add(piece=name, score=0.0, type=model_pb2.ModelProto.SentencePiece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


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
