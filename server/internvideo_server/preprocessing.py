"""From chat messages to frames and token ids: what the Triton model `preprocessing` does for one request."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .chat import ChatTokenizer, Conversation, MediaPart, Prompt, build_prompt, parse_messages
from .errors import invalid
from .frames import FrameStore, NamedMedia
from .limits import FRAMES_PER_GROUP, EngineLimits
from .media import Budget, Media, MediaPolicy, fetch
from .metrics import Meter
from .video import FRAME_SIZE, DecodeRequest, FrameBuffer, Sampling, extra_id

# The URL by which a message refers to the request's `video_bytes` input.
ATTACHMENT_URL = "attachment:video_bytes"


class Embeddings(Protocol):
    """Who knows which embeddings `vit` has (:class:`internvideo_server.cache.LeaseClient`)."""

    def lease(self, request_id: str, keys: list[bytes], deadline: float) -> tuple[int, set[bytes]]:
        """Hold what is there: a ticket and the keys that it holds."""
        ...

    def drop(self, ticket: int) -> None:
        """Let go of what is held: the request will not come."""
        ...

    def give(self, ticket: int, request_id: str, frames: dict[bytes, FrameBuffer], deadline: float) -> int:
        """Leave the frames of the others: the ticket now, 0 where they must go another way."""
        ...


@dataclass(frozen=True)
class PreparedMedium:
    """One medium of a request.

    Attributes:
        key: Of its frames, 32 bytes.
        frame_count: T.
        sent: How many of them are among the request's frames: T, or 0 where `vit` has the embeddings or the frames already.
    """

    key: bytes
    frame_count: int
    sent: int


@dataclass(frozen=True)
class Preprocessed:
    """One request, ready for the vision tower and the engine."""

    frames: npt.NDArray[np.uint8]  # [T, 3, 448, 448] RGB, those of the media that are sent
    media: list[PreparedMedium]
    ticket: int  # under which `vit` holds embeddings or frames of the others, 0: none
    prompt: Prompt
    max_new_tokens: int


@dataclass(frozen=True)
class Preprocessor:
    """Fetches, decodes, samples and resizes the videos, builds the prompt and checks the engine's limits.

    What TensorRT-LLM would answer by ending every request in flight, or with silence, is refused here (too many rows, lengths).
    """

    tokenizer: ChatTokenizer
    limits: EngineLimits
    policy: MediaPolicy
    store: FrameStore
    max_frames: int
    embeddings: Embeddings
    meter: Meter

    def __call__(
        self, messages: bytes, output_len: int, video_bytes: npt.NDArray[np.uint8] | None, budget: Budget, request_id: str = ""
    ) -> Preprocessed:
        """Prepare one request.

        Args:
            messages: JSON list of OpenAI chat messages.
            output_len: Tokens to generate; -1 = what is left of the context.
            video_bytes: An uploaded file, uint8 [bytes], or None.
            budget: Ends the work early.
            request_id: Triton's.

        Raises:
            ServingError: With the field at fault.
        """
        conversation = parse_messages(messages)
        self._check_text(conversation)
        if output_len == 0 or output_len < -1:
            raise invalid(f"the number of tokens to generate must be 1 or more, got {output_len}", "max_tokens")
        least = 0
        for part in conversation.media:  # before anything is fetched
            _sampling(part).check(self.max_frames, part.param)
            least += part.num_frames or FRAMES_PER_GROUP
            self._check_rows(least, part.param)
        with ExitStack() as opened:
            named = [self._name(part, video_bytes, budget, opened) for part in conversation.media]
            known = {each.key: count for each in named if (count := self.store.count(each.key)) is not None}
            ticket, held = self.embeddings.lease(request_id, list(known), budget.deadline) if known else (0, set())
            try:
                media, found = self._collect(named, {key: known[key] for key in held}, budget)
                prompt = self._prompt(conversation, media)
                max_new_tokens = self._max_new_tokens(prompt, output_len)
            except BaseException:
                if ticket:
                    self.embeddings.drop(ticket)
                raise
        if found and (given := self.embeddings.give(ticket, request_id, found, budget.deadline)):
            ticket, found, media = given, {}, [replace(medium, sent=0) for medium in media]
        return Preprocessed(_joined(found), media, ticket, prompt, max_new_tokens)

    def _name(self, part: MediaPart, video_bytes: npt.NDArray[np.uint8] | None, budget: Budget, opened: ExitStack) -> NamedMedia:
        """Open a medium and find its key."""
        began = time.monotonic()
        medium = opened.enter_context(self._open(part, video_bytes, budget))
        named = self.store.name(medium, DecodeRequest(part.kind, _sampling(part), part.param), budget)
        self.meter.add("internvideo_fetch_seconds_total", time.monotonic() - began)
        self.meter.add("internvideo_fetch_bytes_total", medium.size)
        return named

    def _collect(
        self, named: list[NamedMedia], held: dict[bytes, int], budget: Budget
    ) -> tuple[list[PreparedMedium], dict[bytes, FrameBuffer]]:
        """The media, and the frames of those that `vit` does not hold, each once."""
        media: list[PreparedMedium] = []
        sent: dict[bytes, FrameBuffer] = {}
        for each in named:
            known = each.key in held or each.key in sent
            if not known:
                sent[each.key] = self.store.frames(each, budget)
            count = held[each.key] if each.key in held else sent[each.key].frame_count
            media.append(PreparedMedium(each.key, count, 0 if known else count))
            self._check_rows(sum(medium.frame_count for medium in media), each.request.param)
        self.meter.add("internvideo_frames_delivered_total", sum(medium.frame_count for medium in media))
        return media, sent

    def _check_rows(self, frame_count: int, param: str | None) -> None:
        frames = self.limits.max_frames
        if frame_count > frames:
            raise invalid(
                f"the conversation's videos have {frame_count} frames together, the engine takes {frames}: "
                "ask for fewer with num_frames",
                f"{param}.num_frames",
            )

    def _open(self, part: MediaPart, video_bytes: npt.NDArray[np.uint8] | None, budget: Budget) -> Media:
        url = f"{part.param}.url"
        if part.url != ATTACHMENT_URL:
            return fetch(part.url, self.policy, url, budget)
        if video_bytes is None:
            raise invalid(f"the message refers to {ATTACHMENT_URL}, but the request has no video_bytes", url)
        return Media.from_chunks([video_bytes.data], self.policy, url)

    def _check_text(self, conversation: Conversation) -> None:
        """Refuse what cannot fit before it is encoded, which takes seconds for megabytes."""
        limit = self.limits.max_seq_len
        fewest = sum(self.tokenizer.fewest_tokens(message.text) for message in conversation.messages)
        if fewest >= limit:
            raise invalid(
                f"the messages' text has at least {fewest} tokens, the engine's context is {limit}: shorten it", "messages"
            )

    def _prompt(self, conversation: Conversation, media: list[PreparedMedium]) -> Prompt:
        counts, hashes = [m.frame_count for m in media], [extra_id(m.key) for m in media]
        return build_prompt(conversation, counts, self.tokenizer, self.limits.vocab_size, hashes)

    def _max_new_tokens(self, prompt: Prompt, output_len: int) -> int:
        length, limit = len(prompt.input_ids), self.limits.max_seq_len
        if length >= limit:
            raise invalid(
                f"the prompt has {length} tokens ({prompt.rows} of them visual), the engine's context is {limit}: "
                "shorten the text or ask for fewer frames",
                "messages",
            )
        if output_len > limit - length:
            raise invalid(
                f"max_tokens {output_len} and a prompt of {length} tokens exceed the engine's context of {limit}: "
                f"ask for at most {limit - length}",
                "max_tokens",
            )
        return limit - length if output_len == -1 else output_len


def _joined(found: dict[bytes, FrameBuffer]) -> npt.NDArray[np.uint8]:
    arrays = [buffer.frames() for buffer in found.values()]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty((0, 3, FRAME_SIZE, FRAME_SIZE), np.uint8), *arrays])


def _sampling(part: MediaPart) -> Sampling:
    return Sampling(part.num_frames, part.fps, part.start, part.end)


def word_list(words: list[list[int]]) -> npt.NDArray[Any]:
    """Words of token ids -> TensorRT-LLM's int32 [2, L]: all tokens, and each word's end padded with -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return np.array([tokens, ends + [-1] * (len(tokens) - len(ends))], np.int32).reshape(2, -1)
