"""From chat messages to frames and token ids: what the Triton model `preprocessing` does for one request."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.frame_buffer import FRAME_SIZE, FrameBuffer
from internvideo_server.handoff import Reservation
from internvideo_server.limits import FRAMES_PER_GROUP, EngineLimits
from internvideo_server.metrics import Meter
from internvideo_server.report import MediumReport

from .attachments import SCHEME, Attachments
from .chat import IMAGE_FRAMES_THRESHOLD, ChatTokenizer, Conversation, MediaPart, Prompt, build_prompt, parse_messages
from .frame_list import packed
from .frame_store import FrameStore, NamedMedia
from .frame_stream import FrameStream, hand_over
from .media import Media, MediaPolicy, fetch
from .video import DecodedMedia, DecodeRequest, FrameSampling

_NOTHING = DecodedMedia(0, [], 0, 0.0)
_LONGEST_FRAME = 48  # tokens: 16 visual ones and the words around, or those around a turn


class Handoff(Protocol):
    """The way to `vit` (:class:`internvideo_server.handoff.HandoffClient`)."""

    def reserve(self, request_id: str, deadline: float) -> Reservation:
        """A reservation for a request."""
        ...


@dataclass(frozen=True)
class PreparedMedium:
    """One medium of a request.

    Attributes:
        key: Of its frames, 32 bytes.
        frame_count: T.
        sent: How many of them are among the request's frames: T, or 0 where `vit` has the embeddings or the frames already.
        report: What is told of it.
    """

    key: bytes
    frame_count: int
    sent: int
    report: MediumReport


@dataclass(frozen=True)
class Preprocessed:
    """One request, ready for the vision tower and the engine."""

    frames: npt.NDArray[np.uint8]  # [T, 3, 448, 448] RGB, those of the media that are sent
    media: list[PreparedMedium]
    reservation: int  # under which `vit` holds embeddings or frames of the others, 0: none
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
    handoff: Handoff
    meter: Meter
    image_frames_threshold: int = IMAGE_FRAMES_THRESHOLD
    media_places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(64))  # of requests with media

    def __call__(
        self,
        messages: bytes,
        output_len: int,
        attachments: Attachments | None,
        deadline: Deadline,
        request_id: str = "",
        cache_salt: bytes = b"",
        *,
        return_frames: bool = False,
    ) -> Preprocessed:
        """Prepare one request.

        Args:
            messages: JSON list of OpenAI chat messages.
            output_len: Tokens to generate; -1, or more than that: what is left of the context.
            attachments: Media that came as bytes; None: there are none.
            deadline: Ends the work early.
            request_id: Triton's.
            cache_salt: Frames and embeddings are shared among requests with the same one only.
            return_frames: Answer with the frames, and reserve nothing in `vit`.

        Raises:
            ServingError: With the field at fault.
        """
        conversation = parse_messages(messages, self.image_frames_threshold)
        self._check_text(conversation)
        if output_len == 0 or output_len < -1:
            raise invalid(f"the number of tokens to generate must be 1 or more, got {output_len}", "max_tokens")
        counts: list[int] = []
        for part in conversation.media:  # before anything is fetched
            counts.append(self._fewest(part, self.sampling(part)))
            self._check_rows(sum(counts), part)
        if counts and _most_tokens(conversation, counts) >= self.limits.max_seq_len:
            prompt = build_prompt(conversation, counts, self.tokenizer, self.limits.vocab_size, [bytes(32)] * len(counts))
            self._max_new_tokens(prompt, output_len)
        with self._place() if conversation.media else nullcontext(), ExitStack() as opened:
            media_of: dict[str, Media] = {}  # equal URLs are fetched once
            named = [
                self._name(part, attachments or Attachments(), deadline, opened, media_of, cache_salt)
                for part in conversation.media
            ]
            known = {each.key: decoded for each in named if (decoded := self.store.decoded(each.key)) is not None}
            reservation = self.handoff.reserve(request_id, deadline.at)
            held = set() if return_frames else reservation.hold_embeddings(list(known))
            streams: dict[bytes, FrameStream] = {}
            try:
                media = self._begin(named, conversation.media, {key: known[key] for key in held}, streams, deadline)
                prompt = self._prompt(conversation, media)
                max_new_tokens = self._max_new_tokens(prompt, output_len)
                params = {each.key: each.request.param or "" for each in reversed(named)}
                if return_frames or not streams or not hand_over(streams, params, reservation, request_id, deadline):
                    media, found = self._wait(named, media, streams, deadline)
                else:
                    found, media = {}, [replace(medium, sent=0) for medium in media]
            except BaseException:
                for stream in streams.values():
                    stream.leave(deadline)
                reservation.release()
                raise
        return Preprocessed(_joined(found), media, reservation.number, prompt, max_new_tokens)

    def stop(self, request_id: str) -> None:
        """End what goes on for a request that was answered."""
        self.store.stop(request_id)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place of a request with media. None is waited for: only what must be decoded waits, for a decoder."""
        if not self.media_places.acquire(blocking=False):
            text = "the server has as many requests with media as it may; try again later"
            raise ServingError(ErrorCode.RESOURCE_EXHAUSTED, text)
        try:
            yield
        finally:
            self.media_places.release()

    def _name(
        self,
        part: MediaPart,
        attachments: Attachments,
        deadline: Deadline,
        opened: ExitStack,
        media: dict[str, Media],
        salt: bytes = b"",
    ) -> NamedMedia:
        """Open a medium and find its key."""
        began = time.monotonic()
        source = part.url or part.param  # a video that came as images has no URL
        medium = media.get(source)
        if medium is None:
            medium = media[source] = opened.enter_context(self.open(part, attachments, deadline))
            total, most = sum(each.size for each in media.values()), self.policy.max_total_bytes
            if total > most:
                raise invalid(f"the request's media have more than {most} bytes together; send fewer", f"{part.param}.url")
            self.meter.add("internvideo_fetch_bytes_total", medium.size)
        named = self.store.name(medium, DecodeRequest(part.kind, self.sampling(part), part.param), deadline)
        if salt:
            named = replace(named, key=hashlib.blake2b(named.key, key=hashlib.sha256(salt).digest(), digest_size=32).digest())
        self.meter.add("internvideo_fetch_seconds_total", time.monotonic() - began)
        return named

    def _begin(
        self,
        named: list[NamedMedia],
        parts: list[MediaPart],
        held: dict[bytes, DecodedMedia],
        streams: dict[bytes, FrameStream],
        deadline: Deadline,
    ) -> list[PreparedMedium]:
        """The media; the frames of those that `vit` does not hold go into ``streams``, each once, and are being decoded."""
        media: list[PreparedMedium] = []
        decoded = dict(held)
        uses = Counter(id(each.medium) for each in named if each.key not in held)
        for each in named:
            if not uses[id(each.medium)]:
                each.medium.close()
        for each, part in zip(named, parts, strict=True):
            cached = known = each.key in decoded
            if not known:
                streams[each.key], cached = self.store.begin(each, deadline)
                decoded[each.key] = streams[each.key].planned or _NOTHING
            if each.key not in held:
                uses[id(each.medium)] -= 1
                if not uses[id(each.medium)]:
                    each.medium.close()  # what is decoded, or known, takes no room while the next one waits
            count = decoded[each.key].frame_count
            report = medium_report(decoded[each.key], each.request.sampling, self.max_frames, cached)
            media.append(PreparedMedium(each.key, count, 0 if known else count, report))
            self._check_rows(sum(medium.frame_count for medium in media), part)
        self.meter.add("internvideo_frames_delivered_total", sum(medium.frame_count for medium in media))
        return media

    def _wait(
        self, named: list[NamedMedia], media: list[PreparedMedium], streams: dict[bytes, FrameStream], deadline: Deadline
    ) -> tuple[list[PreparedMedium], dict[bytes, FrameBuffer]]:
        """All frames of the streams, where they go another way than as they are decoded; and what is told of the media then."""
        found: dict[bytes, FrameBuffer] = {}
        done = []
        for each, medium in zip(named, media, strict=True):
            stream = streams.get(each.key)
            if stream is not None:
                frames = self.store.wait(stream, each.request.param, deadline)
                if frames is None:  # others' deadlines ended it a moment before this request joined
                    raise ServingError(ErrorCode.UNAVAILABLE, "the media's decoding was given up; try again")
                found.setdefault(each.key, frames.buffer)
                if not medium.report.cached_frames:
                    self.meter.note("decode_seconds", stream.seconds)
                medium = replace(medium, report=replace(medium.report, damaged_frames=frames.decoded.damaged_frames))
            done.append(medium)
        return done, found

    def _fewest(self, part: MediaPart, sampling: FrameSampling) -> int:
        """Frames that a part gives at least."""
        if part.kind == "video" and (part.num_frames or not part.pictures):
            return sampling.fewest(self.store.default_frames, self.max_frames)
        return FRAMES_PER_GROUP * max(1, -(-min(len(part.pictures), self.max_frames) // FRAMES_PER_GROUP))

    def _check_rows(self, frame_count: int, part: MediaPart) -> None:
        frames = self.limits.max_frames
        if frame_count <= frames:
            return
        text = f"the conversation's videos and images have {frame_count} frames together, the engine takes {frames}"
        if part.kind == "video" and not part.pictures:
            raise invalid(f"{text}: ask for fewer with num_frames", f"{part.param}.num_frames")
        if part.pictures:
            raise invalid(f"{text}: send fewer images", part.param)
        several = f'each image takes {FRAMES_PER_GROUP}: send fewer, or write "as": "frame" into the parts of one video'
        raise invalid(f"{text}; {several}", part.param)

    def sampling(self, part: MediaPart) -> FrameSampling:
        """Which frames of a medium are asked for.

        Raises:
            ServingError: Options that cannot be meant, or more frames than a request may ask for.
        """
        sampling = FrameSampling(part.num_frames, part.fps, part.start, part.end, part.max_frames, part.by_duration)
        sampling.check(self.max_frames, part.param)
        return sampling

    def open(self, part: MediaPart, attachments: Attachments, deadline: Deadline) -> Media:
        """The content of a medium.

        Raises:
            ServingError: See :func:`internvideo_server.preprocessing.media.fetch`.
        """
        if part.pictures:
            return Media.from_chunks(packed(self._pictures(part, attachments, deadline)), self.policy, part.param)
        url = f"{part.param}.url"
        if part.url.startswith(SCHEME):
            return attachments.open(part.url, self.policy, url)
        return fetch(part.url, self.policy, url, deadline)

    def _pictures(self, part: MediaPart, attachments: Attachments, deadline: Deadline) -> Iterator[bytes]:
        for picture in part.pictures:
            with self.open(picture, attachments, deadline) as medium:
                yield os.pread(medium.fd, medium.size, 0)

    def _check_text(self, conversation: Conversation) -> None:
        """Refuse what cannot fit before it is encoded, which takes seconds for megabytes."""
        limit = self.limits.max_seq_len
        texts = [text for message in conversation.messages for text in (message.text, *message.calls)]
        if conversation.prompt is not None:
            texts = [conversation.prompt] if isinstance(conversation.prompt, str) else []
        fewest = sum(map(self.tokenizer.fewest_tokens, texts)) if texts else len(conversation.prompt or ())
        if fewest >= limit:
            raise invalid(f"{_overflow(limit)}, but the messages' text alone has at least {fewest}: shorten it", "messages")

    def _prompt(self, conversation: Conversation, media: list[PreparedMedium]) -> Prompt:
        counts, keys = [m.frame_count for m in media], [m.key for m in media]
        return build_prompt(conversation, counts, self.tokenizer, self.limits.vocab_size, keys)

    def _max_new_tokens(self, prompt: Prompt, output_len: int) -> int:
        length, limit = len(prompt.input_ids), self.limits.max_seq_len
        if length >= limit:
            raise invalid(
                f"{_overflow(limit)}, but the prompt has {length} ({prompt.rows} of them visual): "
                "shorten the text or ask for fewer frames",
                "messages",
            )
        return limit - length if output_len == -1 else min(output_len, limit - length)


def medium_report(decoded: DecodedMedia, sampling: FrameSampling, max_frames: int, cached: bool) -> MediumReport:
    """What is told of a medium.

    Args:
        decoded: Its frames.
        sampling: As it was asked for.
        max_frames: The most that a request may ask for.
        cached: Whether the frames were there already.
    """
    count, numbers, seconds, fps = decoded.frame_count, decoded.indices, decoded.seconds, None
    max_frames = sampling.most(max_frames)
    if sampling.fps is not None and count + FRAMES_PER_GROUP > max_frames and seconds and seconds[-1] > seconds[0]:
        taken = (count - 1) / (seconds[-1] - seconds[0])
        if taken * (1 + FRAMES_PER_GROUP / count) < sampling.fps:  # more than rounding to whole groups makes
            fps = round(taken, 3)
    return MediumReport(count, count if cached else 0, numbers, seconds, decoded.damaged_frames, fps)


def _most_tokens(conversation: Conversation, frame_counts: list[int]) -> int:
    """What a prompt has at most, known without encoding it: no piece is shorter than a byte."""
    texts = [text for message in conversation.messages for text in (message.text, *message.calls)]
    around = _LONGEST_FRAME * (1 + len(conversation.messages) + len(texts))
    return sum(len(text.encode()) for text in texts) + around + _LONGEST_FRAME * sum(frame_counts)


def _overflow(limit: int) -> str:
    """In OpenAI's words, by which routers know it."""
    return f"This model's maximum context length is {limit} tokens"


def _joined(found: dict[bytes, FrameBuffer]) -> npt.NDArray[np.uint8]:
    arrays = [buffer.frames() for buffer in found.values()]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty((0, 3, FRAME_SIZE, FRAME_SIZE), np.uint8), *arrays])
