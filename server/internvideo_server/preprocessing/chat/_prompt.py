r"""The prompt of InternVideo2.5: its text, its ids and the keys of its visual tokens.

Template ``internvl2_5`` of the model's own conversation.py, with the frames written as its model card does::

    <s><|im_start|>system\n{system}<|im_end|>\n
    <|im_start|>user\nFrame1: <img>{16 x <IMG_CONTEXT>}</img>\nFrame2: ...</img>\n{question}<|im_end|>\n
    <|im_start|>assistant\n{answer}<|im_end|>\n ... <|im_start|>assistant\n

Calls of functions in the history are written as InternLM2's chat format has them::

    <|im_start|>assistant\n{text}<|action_start|><|plugin|>\n{"name": ..., "parameters": {...}}<|action_end|>\n<|im_end|>\n
    <|im_start|>environment name=<|plugin|>\n{what the function answered}<|im_end|>\n
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internvideo_server.errors import invalid
from internvideo_server.limits import TOKENS_PER_FRAME

from ._messages import Conversation, Message
from ._tokenizer import ChatTokenizer

DEFAULT_SYSTEM_TEXT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

BOS, TURN, END, IMAGE, IMAGE_END = "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>"
CONTEXT = "<IMG_CONTEXT>"
PLUGIN, CALL, CALL_END = "<|plugin|>", "<|action_start|>", "<|action_end|>"


@dataclass(frozen=True)
class Prompt:
    """What the engine is given for one conversation; N tokens, of which ``rows`` are virtual."""

    text: str  # for people and logs: a user's own "<|im_end|>" cannot be told from the template's; no <s>
    input_ids: NDArray[np.int32]  # [N]; a virtual token is vocab_size + its row of the prompt embedding table
    extra_ids: NDArray[np.uint64]  # [N]; 0 on text; what tells the media apart on virtual tokens
    rows: int


@dataclass(frozen=True)
class _Control:
    name: str


@dataclass(frozen=True)
class _Frame:
    """One frame's virtual tokens."""

    medium: int


def build_prompt(
    conversation: Conversation,
    frame_counts: list[int],
    tokenizer: ChatTokenizer,
    vocab_size: int,
    media_keys: list[bytes],
) -> Prompt:
    """Write a conversation in the model's template.

    Args:
        conversation: The messages. Without a system message in front, the model's own system text stands there.
        frame_counts: Frames of each medium, in the order of ``conversation.media``; an image is 4 equal frames.
        tokenizer: The checkpoint's.
        vocab_size: The engine's: the first virtual id.
        media_keys: One key of 32 bytes for each medium, equal for equal content and sampling only.

    Raises:
        ValueError: The lists do not fit the conversation (a fault of the caller).
    """
    media = len(conversation.media)
    if not len(frame_counts) == len(media_keys) == media:
        raise ValueError(f"{len(frame_counts)} frame counts and {len(media_keys)} keys for {media} media")
    if conversation.prompt is not None:
        return _bare(conversation.prompt, tokenizer)
    segments = list(_joined(_template(conversation, frame_counts)))
    ids: list[int] = [tokenizer.token_id(BOS)]
    keys: list[int] = [0]
    rows = 0
    for segment in segments:
        if isinstance(segment, _Frame):
            ids.extend(range(vocab_size + rows, vocab_size + rows + TOKENS_PER_FRAME))
            keys.extend(_extra_ids(media_keys[segment.medium]))
            rows += TOKENS_PER_FRAME
            continue
        # As the original's tokenizer does: cut at control tokens, each text in between is encoded on its own.
        new = [tokenizer.token_id(segment.name)] if isinstance(segment, _Control) else tokenizer.encode_text(segment)
        ids.extend(new)
        keys.extend([0] * len(new))
    text = "".join(_as_text(segment) for segment in segments)
    return Prompt(text, np.array(ids, dtype=np.int32), np.array(keys, dtype=np.uint64), rows)


def _extra_ids(key: bytes) -> list[int]:
    """The extra ids of a frame's tokens: the four words of the medium's key in turn; none is 0, which marks text."""
    words = [int.from_bytes(key[at : at + 8], "little") or 1 for at in range(0, 32, 8)]
    return words * (TOKENS_PER_FRAME // len(words))


def _bare(prompt: str | tuple[int, ...], tokenizer: ChatTokenizer) -> Prompt:
    """A prompt without the template; a text begins with ``<s>``, token ids are taken as they are."""
    if isinstance(prompt, str):
        ids, text = [tokenizer.token_id(BOS), *tokenizer.encode_text(prompt)], prompt
    else:
        ids, text = list(prompt), ""
        if strange := [i for i in ids if not 0 <= i < tokenizer.vocab_size]:
            raise invalid(f"token {strange[0]} is not within 0 .. {tokenizer.vocab_size - 1}", "prompt")
    return Prompt(text, np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint64), 0)


_Segment = str | _Control | _Frame


def _template(conversation: Conversation, frame_counts: list[int]) -> Iterator[_Segment]:
    messages = list(conversation.messages)
    if messages[0].role != "system":
        messages.insert(0, Message("system", DEFAULT_SYSTEM_TEXT))
    medium = 0
    for message in messages:
        if message.role == "environment":
            yield from (_Control(TURN), "environment name=", _Control(PLUGIN), "\n")
        else:
            yield from (_Control(TURN), f"{message.role}\n")
        pieces = message.order or (*[None] * len(message.media), message.text)
        for place, piece in enumerate(pieces, 1):
            if piece is not None:
                yield piece if place == len(pieces) else f"{piece}\n"
                continue
            for number in range(1, frame_counts[medium] + 1):
                yield from (f"Frame{number}: ", _Control(IMAGE), _Frame(medium), _Control(IMAGE_END), "\n")
            medium += 1
        for call in message.calls:
            yield from (_Control(CALL), _Control(PLUGIN), f"\n{call}", _Control(CALL_END), "\n")
        yield from (_Control(END), "\n")
    yield from (_Control(TURN), "assistant\n")


def _joined(segments: Iterator[_Segment]) -> Iterator[_Segment]:
    """Join neighbouring texts: a piece may span the line end of a frame and the question's begin."""
    text = ""
    for segment in segments:
        if isinstance(segment, str):
            text += segment
            continue
        if text:
            yield text
        yield segment
        text = ""
    if text:
        yield text


def _as_text(segment: _Segment) -> str:
    if isinstance(segment, _Frame):
        return CONTEXT * TOKENS_PER_FRAME
    return segment.name if isinstance(segment, _Control) else segment
