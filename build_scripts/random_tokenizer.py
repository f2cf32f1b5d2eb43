"""Tokenizer files in the form of InternLM2's, trained on generated sentences, for checkpoints of random weights."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

# sentencepiece's own protobuf module asks for a newer protobuf runtime than Triton's client allows; transformers carries
# one that any runtime reads.
from transformers.utils import sentencepiece_model_pb2_new as model_pb2

# The names that tokenizer_config.json gives to the last six pieces of tokenizer.model, in the order of their ids ...
_RENAMED = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
_FIRST_RENAMED = 141  # ... which are [UNUSED_TOKEN_141] to [UNUSED_TOKEN_146] inside the model
# The tokens that follow the pieces: added_tokens.json. The first nine are special.
_ADDED = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
    *("<box_begin>", "<time_begin>", "<track_begin>", "<track_box>", "<boxes>", "<temp>", "<tracking>"),
)
_SPECIAL_ADDED = 9
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TRAINED_PIECES = 1494  # <unk>, <s>, </s>, 256 bytes, and what the sentences below give
SMALLEST_VOCABULARY = TRAINED_PIECES + len(_RENAMED) + len(_ADDED)

# Phrases, separated by |.
_SUBJECTS = """
a red panda|the small dog|an old man|the young woman|two children|a black cat|the person in a white shirt
|someone|a group of people|the camera|a blue car|the yellow bus|a bird|the chef|a football player|the teacher
|a cyclist|the dancer|a boat|the train|an elephant|the monkey|a horse|the swimmer|a girl with long hair|the boy
|several birds|the background
"""
_VERBS = """
walks slowly|is running|climbs up|sits quietly|looks at the camera|moves from left to right|stands still
|jumps over|is eating|picks up something|puts down the cup|turns around|opens the door|closes the window
|is playing music|holds a book|disappears|appears again|talks to another person|smiles|throws a ball|catches it
|is cooking dinner|drives away|waits|starts to dance|stops moving|falls down|stretches|scratches its head
|drinks water|is sleeping|follows the leader
"""
_PLACES = """
on the grass|in the park|next to a large tree|behind the fence|inside the kitchen|on a wooden bench|at the beach
|across the street|under the bridge|near the river|in front of a house|on the mountain|at night
|in bright sunlight|during the first part of the video|at the end of the clip|between second 12 and 27
|for about 30 seconds|in the snow|with a green plant|on the table|through the forest|beside the road
|in the middle of the frame|around the corner
"""
_QUESTIONS = """
Describe this video in detail.|What happens in the video?|How many people are there?|Which color is the object?
|Why does it move?|When does the scene change?|Where was this filmed?|Who is speaking?
|Please answer briefly: yes or no?|Can you summarize the main event, step by step?
|"I don't know", she said; it's unclear!|def answer(x): return x + 1|{"role": "user", "content": "hello"}
|<html><body>text</body></html>|https://example.com/video.mp4?start=4&end=11.5
"""
_CHINESE = """
详细描述一下这个视频的内容。|视频中发生了什么？|画面里有几个人？|一只小熊猫正在树上慢慢地爬行，
|一个穿白色衣服的女人坐在长椅上，|两个孩子在公园里踢足球，|他打开了门，然后走进厨房。
|背景是绿色的植物和蓝色的天空。|镜头从左向右移动，|最后，它停下来看着镜头。|请用一句话回答：是或不是？
|这辆红色的汽车很快就消失了。|晚上，人们在街上跳舞、唱歌！
|你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。
"""


def write_tokenizer(out: Path, vocab_size: int, seed: int, tokenizer_model: Path | None = None) -> list[int]:
    """Write ``tokenizer.model`` and its three JSON files.

    Args:
        out: The checkpoint directory.
        vocab_size: Of the language model: pieces and added tokens together, at least `SMALLEST_VOCABULARY`.
        seed: Of the training sentences.
        tokenizer_model: A model to copy in place of training one (InternLM2's own: 92544 pieces).

    Returns:
        The ids that end an answer: ``<|im_end|>`` and ``<|im_start|>``.

    Raises:
        ValueError: ``tokenizer_model`` has another number of pieces than the vocabulary leaves room for, or is none.
    """
    pieces = vocab_size - len(_ADDED)
    model = _train(pieces, seed) if tokenizer_model is None else tokenizer_model.read_bytes()
    _check(model, pieces, tokenizer_model)
    (out / "tokenizer.model").write_bytes(model)

    first_renamed = pieces - len(_RENAMED)
    ids = {name: first_renamed + i for i, name in enumerate(_RENAMED + _ADDED)}
    special = ["<unk>", "<s>", "</s>", *_RENAMED, *_ADDED[:_SPECIAL_ADDED]]
    decoder = {str(i): _added_token(name, name in special) for i, name in enumerate(("<unk>", "<s>", "</s>"))}
    decoder |= {str(i): _added_token(name, name in special) for name, i in ids.items()}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    additional = [*reversed(_RENAMED), *_ADDED[:_SPECIAL_ADDED]]
    _write_json(out / "added_tokens.json", {name: ids[name] for name in sorted(_ADDED)})
    full_roles = {role: _added_token(name, special=True) for role, name in roles.items()}
    for token in full_roles.values():
        del token["special"]
    _write_json(out / "special_tokens_map.json", {"additional_special_tokens": additional, **full_roles})
    _write_json(
        out / "tokenizer_config.json",
        {
            "added_tokens_decoder": decoder,
            "additional_special_tokens": additional,
            "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
            "chat_template": _CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "tokenizer_class": "InternLM2Tokenizer",
            **roles,
        },
    )
    return [ids["<|im_end|>"], ids["<|im_start|>"]]


def _train(pieces: int, seed: int) -> bytes:
    """InternLM2's settings; the rest up to ``pieces`` is filled with pieces that no text contains."""
    proto = trained(iter(_sentences(seed)), TRAINED_PIECES)
    # Merging makes a piece from two others only, so a longer piece without parts is never reached; scores keep falling.
    lowest = min(piece.score for piece in proto.pieces)
    for i in range(pieces - len(_RENAMED) - len(proto.pieces)):
        proto.pieces.add(piece=f"[PADDING_{i}]", score=lowest - 1 - i, type=model_pb2.ModelProto.SentencePiece.NORMAL)
    return with_renamed(proto)


def trained(sentences: Iterator[str], pieces: int, symbols: Sequence[str] = ()) -> Any:
    """A sentencepiece model (its protobuf message) of BPE with InternLM2's settings; ``symbols`` are pieces of their own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        user_defined_symbols=list(symbols),
        num_threads=1,  # the same model on every machine
        pad_id=-1,
        minloglevel=2,
    )
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


def with_renamed(proto: Any) -> bytes:
    """The serialised model, with the last six pieces, those that ``tokenizer_config.json`` renames."""
    for i in range(len(_RENAMED)):
        name = f"[UNUSED_TOKEN_{_FIRST_RENAMED + i}]"
        proto.pieces.add(piece=name, score=0.0, type=model_pb2.ModelProto.SentencePiece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _check(model: bytes, pieces: int, source: Path | None) -> None:
    proto = model_pb2.ModelProto()  # sentencepiece's own reader of 0.2.2 refuses InternLM2's, which has a NUL among its pieces
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's DecodeError has no public, stable home
        raise ValueError(f"{source} is not a sentencepiece model: {error}") from error
    if len(proto.pieces) != pieces:
        raise ValueError(f"{source} has {len(proto.pieces)} pieces, the vocabulary needs {pieces}")


def _sentences(seed: int) -> list[str]:
    subjects, verbs, places, questions, chinese = (
        [part.strip() for part in text.split("|")] for text in (_SUBJECTS, _VERBS, _PLACES, _QUESTIONS, _CHINESE)
    )
    rng = random.Random(seed)
    actions = list(itertools.product(subjects, verbs, places))
    sentences = [
        f"{s[0].upper()}{s[1:]} {v} {p}, and {q[0]} {q[1]}."
        for (s, v, p), q in ((rng.choice(actions), rng.choice(actions)) for _ in range(3000))
    ]
    sentences += [rng.choice(questions) for _ in range(500)]
    sentences += ["".join(rng.choices(chinese, k=3)) for _ in range(1500)]
    sentences += [f"Frame{i}: " for i in range(1, 513)] + ["system", "user", "assistant"] * 50
    sentences += [chr(code) for code in range(0x20, 0x7F)] * 5
    return sentences


def _added_token(content: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": content, **flags, "normalized": not special, "special": special}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
