"""What was said so far, and how it goes to the server: the same content each time, so that the server's caches know it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._http_chat import media_part

# Printable ASCII only: Chinese may follow a URL without a space.
_URL = re.compile(r"\s*((?:https?|file)://[!-~]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Args:
        text: The question.
        media: Videos and images that it brought: URLs, and paths of local files.
        sampling: Options of its videos (``num_frames``, ``start``, ``end``).
        answer: What came so far.
        usage: ``usage`` of the response, once it has ended.
        ended: Its ``finish_reason``, or "stopped"; None while it goes on.
        error: Why there is no answer, or no whole one.
    """

    text: str
    media: tuple[str, ...] = ()
    sampling: dict[str, int | float] = field(default_factory=dict)
    answer: str = ""
    usage: dict[str, Any] | None = None
    ended: str | None = None
    error: str | None = None

    @classmethod
    def typed(cls, text: str, files: Sequence[str]) -> Turn:
        """What a person entered: a text, which may begin with URLs of media, and dropped files."""
        urls = []
        while match := _URL.match(text):
            urls.append(match[1])
            text = text[match.end() :]
        return cls(text.strip(), (*urls, *files))

    @property
    def urls(self) -> tuple[str, ...]:
        """Media that the server fetches."""
        return tuple(source for source in self.media if _URL.match(source))

    @property
    def files(self) -> tuple[str, ...]:
        """Media that are sent along."""
        return tuple(source for source in self.media if not _URL.match(source))

    @property
    def as_typed(self) -> str:
        """The text with its URLs before it."""
        return " ".join((*self.urls, self.text)).strip()


def sampled(turns: Sequence[Turn], sampling: dict[str, int | float]) -> list[Turn]:
    """The turns with the options for the newest video; earlier videos keep the options they were seen with."""
    changed = list(turns)
    for number in reversed(range(len(turns))):
        if turns[number].media:
            changed[number] = replace(turns[number], sampling=sampling)
            break
    return changed


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """OpenAI's messages of a conversation whose last turn waits for its answer."""
    result: list[dict[str, Any]] = []
    for turn in turns:
        parts = [_part(source, turn.sampling) for source in turn.media]
        result.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.text}]})
        result.append({"role": "assistant", "content": turn.answer})
    return result[:-1]


def _part(source: str, sampling: dict[str, int | float]) -> dict[str, Any]:
    part = media_part(source, {})
    if part["type"] == "video_url":
        part["video_url"].update(sampling)
    return part
