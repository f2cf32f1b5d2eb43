"""Tokenizer files in a checkpoint's layout for the tests: a small one trained here, and the real one where it is at hand."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

from internvideo_server.export.tokenizer import export_tokenizer
from internvideo_server.preprocessing.chat import ChatTokenizer

RENAMED = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
ADDED_SPECIAL = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
ADDED_PLAIN = ["<box_begin>", "<time_begin>", "<track_begin>", "<track_box>", "<boxes>", "<temp>", "<tracking>"]
OLD_NAMES = [f"[UNUSED_TOKEN_{i}]" for i in range(141, 147)]
CORPUS = [
    "Describe this video in detail. A red panda climbs a tree and eats an apple.",
    "详细描述一下这个视频的内容。视频中出现了两只红熊猫，一只在树枝上，另一只站在地面上。",
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    "def main(args: list[str]) -> int:    return len(args)  # ----------------  ======== ........ 000111",
    "<img> </img> <s> user assistant system Frame1: Frame23: Frame128: |im_end| [UNUSED_TOKEN_145]",
]


@dataclass(frozen=True)
class Tokenizers:
    """One tokenizer three times: sentencepiece, the exported file as it is, and the product's."""

    sentencepiece: sentencepiece.SentencePieceProcessor
    exported: Tokenizer
    chat: ChatTokenizer

    @property
    def pieces(self) -> list[str]:
        """What a user may type and meet as a piece: no byte tokens, no names that control tokens had."""
        model = self.sentencepiece
        names = [model.id_to_piece(i) for i in range(model.vocab_size()) if not (model.is_byte(i) or model.is_control(i))]
        return [name.replace("▁", " ") for name in names if name not in (*OLD_NAMES, "<unk>")]


@functools.cache
def small_tokenizers() -> Tokenizers:
    """Trained here, with what makes the real one awkward: a piece NUL and ordinary user-defined pieces."""
    return _exported(small_model())


@functools.cache
def real_tokenizers(model_file: Path) -> Tokenizers:
    """InternLM2's, with InternVideo2.5's added tokens."""
    return _exported(model_file.read_bytes())


@functools.cache
def small_model() -> bytes:
    """A serialised sentencepiece model of 700 pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=False,
        hard_vocab_limit=False,
        user_defined_symbols=["——", "ab▁a", *OLD_NAMES],
        minloglevel=2,
    )
    model = sentencepiece_model.ModelProto.FromString(written.getvalue())
    plain = [piece for piece in model.pieces if piece.piece not in OLD_NAMES]
    old_names = [piece for piece in model.pieces if piece.piece in OLD_NAMES]
    del model.pieces[:]
    model.pieces.extend(plain)
    model.pieces.add(piece="\0", score=-9999.0, type=1)
    model.pieces.extend(old_names)  # the renamed ones stand at the end, as in the real model
    serialized: bytes = model.SerializeToString()
    return serialized


def write_tokenizer_files(directory: Path, model: bytes) -> Path:
    """Put a checkpoint's tokenizer files around a sentencepiece model whose last six pieces are renamed."""
    size = len(sentencepiece_model.ModelProto.FromString(model).pieces)
    added = {name: size + i for i, name in enumerate(ADDED_SPECIAL + ADDED_PLAIN)}
    offset = size - len(RENAMED)
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2} | {name: offset + i for i, name in enumerate(RENAMED)} | added
    decoder = {str(i): {"content": name, "special": name not in ADDED_PLAIN} for name, i in tokens.items()}
    config = {"added_tokens_decoder": decoder, "additional_special_tokens": RENAMED + ADDED_SPECIAL}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model)
    (directory / "added_tokens.json").write_text(json.dumps(added))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _exported(model: bytes) -> Tokenizers:
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_tokenizer_files(Path(scratch), model)
        out = directory / "engine" / "tokenizer.json"
        export_tokenizer(directory, out)
        return Tokenizers(
            sentencepiece.SentencePieceProcessor(model_proto=model),
            Tokenizer.from_file(str(out)),
            ChatTokenizer.from_file(out),
        )
