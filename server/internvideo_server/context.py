"""How long a request may be: frames and tokens, by one rule for the launcher, the exports, ``build.py`` and ``sizing.py``."""

from __future__ import annotations

from dataclasses import dataclass

from internvideo_server.limits import FRAMES_PER_GROUP, MAX_POSITIONS, TOKENS_PER_FRAME, LimitsError

CPU_FRAMES, GPU_FRAMES = 128, 512  # of a request by default, where there is room
TEXT_TOKENS, ANSWER_TOKENS = 2048, 2048  # what `auto` leaves beside the frames
RESERVE = TEXT_TOKENS + ANSWER_TOKENS
LEAST_RESERVE = 256  # the system's text, a question and a short answer: below this nothing can be asked
_WORDS = 7  # "FrameN: <img>", "</img>" and the line's end; InternLM2 writes numbers in pieces of up to three digits
_ONE_PIECE = 999


def frame_tokens(frames: int) -> int:
    """Tokens of one video in the prompt, by InternLM2's tokenizer: 23 a frame, 24 from the thousandth on."""
    return frames * (TOKENS_PER_FRAME + _WORDS) + max(0, frames - _ONE_PIECE)


def most_frames(tokens: int) -> int:
    """The longest video within so many tokens, a multiple of 4; 0: none."""
    frames = max(0, tokens) // (TOKENS_PER_FRAME + _WORDS)
    frames -= frames % FRAMES_PER_GROUP
    while frame_tokens(frames) > tokens and frames:
        frames -= FRAMES_PER_GROUP
    return frames


@dataclass(frozen=True)
class Context:
    """What one request may hold.

    Attributes:
        max_frames: Frames of all its videos.
        max_model_len: Tokens of its prompt and answer together.
    """

    max_frames: int
    max_model_len: int

    @classmethod
    def of(cls, max_frames: int | None, max_model_len: int | None, carried: int = CPU_FRAMES) -> Context:
        """The one rule.

        Args:
            max_frames: As wanted; None: what ``carried`` and the length allow.
            max_model_len: As wanted; None (``auto``): what the frames need, and 2,048 + 2,048 tokens.
            carried: Frames that the device carries.

        Raises:
            LimitsError: They cannot be together; the message has the largest that can.
        """
        if max_model_len is not None and not LEAST_RESERVE + frame_tokens(FRAMES_PER_GROUP) <= max_model_len <= MAX_POSITIONS:
            least = LEAST_RESERVE + frame_tokens(FRAMES_PER_GROUP)
            raise LimitsError(
                f"--max-model-len {max_model_len}: from {least} to {MAX_POSITIONS}, the positions that the model was trained "
                "for; beyond, its answers would be another model's"
            )
        if max_frames is None:
            room = MAX_POSITIONS - RESERVE if max_model_len is None else max_model_len - min(RESERVE, max_model_len // 2)
            max_frames = max(FRAMES_PER_GROUP, min(carried, most_frames(room)))
        needed = frame_tokens(max_frames)
        if max_model_len is None:
            max_model_len = needed + RESERVE
            if max_model_len > MAX_POSITIONS:
                by_hand = most_frames(MAX_POSITIONS - LEAST_RESERVE)
                raise LimitsError(
                    f"--max-frames {max_frames} needs {max_model_len} positions ({needed} for the frames, {RESERVE} for text and "
                    f"answer), the model has {MAX_POSITIONS}: at most --max-frames {most_frames(MAX_POSITIONS - RESERVE)}, or "
                    f"up to {by_hand} with less text by --max-model-len {MAX_POSITIONS}"
                )
        elif needed + LEAST_RESERVE > max_model_len:
            raise LimitsError(
                f"--max-frames {max_frames} takes {needed} tokens and {LEAST_RESERVE} more are the least, --max-model-len is "
                f"{max_model_len}: at most --max-frames {most_frames(max_model_len - LEAST_RESERVE)}"
            )
        return cls(max_frames, max_model_len)
