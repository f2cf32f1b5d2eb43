"""From chat messages to frames and token ids: what the Triton model `preprocessing` does for one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .chat import ChatTokenizer, Conversation, MediaPart, Prompt, build_prompt, parse_messages
from .errors import invalid
from .limits import EngineLimits
from .media import Budget, Media, MediaPolicy, fetch
from .video import DecodedMedia, DecodeRequest, FrameBuffer, FrameDecoder, Sampling

# The URL by which a message refers to the request's `video_bytes` input.
ATTACHMENT_URL = "attachment:video_bytes"


@dataclass(frozen=True)
class Preprocessed:
    """One request, ready for the vision tower and the engine."""

    frames: npt.NDArray[np.uint8]  # [T, 3, 448, 448] RGB
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
    decoder: FrameDecoder
    max_frames: int

    def __call__(
        self, messages: bytes, output_len: int, video_bytes: npt.NDArray[np.uint8] | None, budget: Budget
    ) -> Preprocessed:
        """Prepare one request.

        Args:
            messages: JSON list of OpenAI chat messages.
            output_len: Tokens to generate; -1 = what is left of the context.
            video_bytes: An uploaded file, uint8 [bytes], or None.
            budget: Ends the work early.

        Raises:
            ServingError: With the field at fault.
        """
        conversation = parse_messages(messages)
        if output_len == 0 or output_len < -1:
            raise invalid(f"the number of tokens to generate must be 1 or more, got {output_len}", "max_tokens")
        for part in conversation.media:
            _sampling(part).check(self.max_frames, part.param)
        with FrameBuffer() as buffer:
            media = [self._decode(part, video_bytes, buffer, budget) for part in conversation.media]
            prompt = self._prompt(conversation, media)
            return Preprocessed(buffer.frames(), prompt, self._max_new_tokens(prompt, output_len))

    def _decode(
        self, part: MediaPart, video_bytes: npt.NDArray[np.uint8] | None, buffer: FrameBuffer, budget: Budget
    ) -> DecodedMedia:
        with self._open(part, video_bytes, budget) as medium:
            decoded = self.decoder.decode(medium.fd, DecodeRequest(part.kind, _sampling(part), part.param), buffer, budget)
        frames = self.limits.max_rows // 16
        if buffer.frame_count > frames:
            raise invalid(
                f"the conversation's videos have {buffer.frame_count} frames together, the engine takes {frames}: "
                "ask for fewer with num_frames",
                f"{part.param}.num_frames",
            )
        return decoded

    def _open(self, part: MediaPart, video_bytes: npt.NDArray[np.uint8] | None, budget: Budget) -> Media:
        url = f"{part.param}.url"
        if part.url != ATTACHMENT_URL:
            return fetch(part.url, self.policy, url, budget)
        if video_bytes is None:
            raise invalid(f"the message refers to {ATTACHMENT_URL}, but the request has no video_bytes", url)
        return Media.from_chunks([video_bytes.data], self.policy, url)

    def _prompt(self, conversation: Conversation, media: list[DecodedMedia]) -> Prompt:
        counts, hashes = [m.frame_count for m in media], [m.content_hash for m in media]
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


def _sampling(part: MediaPart) -> Sampling:
    return Sampling(part.num_frames, part.fps, part.start, part.end)


def word_list(words: list[list[int]]) -> npt.NDArray[Any]:
    """Words of token ids -> TensorRT-LLM's int32 [2, L]: all tokens, and each word's end padded with -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return np.array([tokens, ends + [-1] * (len(tokens) - len(ends))], np.int32).reshape(2, -1)
