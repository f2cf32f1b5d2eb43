"""Frames of media by content: decoded once, kept within a number of bytes, shared by the requests that want them together."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock, Thread

from cachetools import LRUCache

from internvideo_server.cache import ByteLru
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError, shortage
from internvideo_server.frame_buffer import FRAME_BYTES, FrameBuffer
from internvideo_server.metrics import Meter

from .frame_stream import FrameStream
from .media import Digests, Identity, Media
from .video import DecodedMedia, DecodeRequest, FrameDecoder, frames_key

_log = logging.getLogger(__name__)
_DOING = "decoding the media"
_KNOWN_FRAMES = 1 << 20  # some 70 bytes each


@dataclass(frozen=True)
class NamedMedia:
    """An open medium, what is asked of it, and the name of its frames.

    Attributes:
        key: Equal for equal frames. Random where the content cannot be trusted to stay what was hashed.
        identity: Of the file when it was hashed.
    """

    medium: Media
    request: DecodeRequest
    key: bytes
    identity: Identity
    lasting: bool


@dataclass(frozen=True)
class StoredFrames:
    """The frames of a medium.

    Attributes:
        buffer: Not to be written to.
        decoded: What was decoded.
        cached: Whether that was done for another request.
    """

    buffer: FrameBuffer
    decoded: DecodedMedia
    cached: bool = True


class FrameStore:
    """The decoder behind a cache. Thread-safe.

    Args:
        decoder: Decodes what is not there.
        cache_bytes: Of the frames that are kept; 0: none.
        meter: Counts the work.
        on_decoded: Called after each decode, when it has been counted.
    """

    def __init__(
        self, decoder: FrameDecoder, cache_bytes: int, meter: Meter, on_decoded: Callable[[], None] = lambda: None
    ) -> None:
        self._decoder, self._meter, self._on_decoded = decoder, meter, on_decoded
        self._cache: ByteLru[StoredFrames] = ByteLru("frames", cache_bytes, lambda frames: frames.buffer.nbytes, meter)
        self._digests = Digests()
        self._known: LRUCache[bytes, DecodedMedia] = LRUCache(_KNOWN_FRAMES, lambda decoded: decoded.frame_count)
        self._lock = Lock()  # guards the three around it
        self._shared: dict[bytes, FrameStream] = {}  # which others may join
        self._decoding: set[FrameStream] = set()

    @property
    def default_frames(self) -> int:
        """Of a video where the request does not say."""
        return self._decoder.limits.default_frames

    def name(self, medium: Media, request: DecodeRequest, deadline: Deadline) -> NamedMedia:
        """Name the frames of a medium, without decoding it.

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        identity = Identity.of(medium.fd)
        digest = self._digests.digest(medium, deadline)
        # A file written just now may be written again without another time stamp.
        lasting = medium.private or identity.settled
        key = frames_key(digest, request, self._decoder.limits) if lasting else secrets.token_bytes(32)
        return NamedMedia(medium, request, key, identity, lasting)

    def decoded(self, key: bytes) -> DecodedMedia | None:
        """Which frames a medium has, if it was decoded before."""
        with self._lock:
            return self._known.get(key)

    def begin(self, named: NamedMedia, deadline: Deadline) -> tuple[FrameStream, bool]:
        """The frames of a medium, as soon as it is known which they are: they may still be decoded.

        Returns:
            The frames, for which the caller waits from now on, and whether that was or is done for another request.

        Raises:
            ServingError: See :meth:`FrameDecoder.decode`.
        """
        if (kept := self._cache.get(named.key)) is not None:
            return FrameStream.whole(kept.buffer, kept.decoded), True
        while True:
            with self._lock:
                stream = self._shared.get(named.key)
                cached = stream is not None and stream.join(deadline)
                if stream is None or not cached:
                    stream = self._shared[named.key] = FrameStream()
                    stream.join(deadline)
                    self._decoding.add(stream)
                    work = partial(self._decode, replace(named, medium=named.medium.share()), stream)
                    Thread(target=work, name="decode", daemon=True).start()
            try:
                if stream.wait_planned(deadline, _DOING):
                    return stream, cached
            except ServingError as error:
                stream.leave(deadline)
                raise _of(error, named.request.param) from None

    def frames(self, named: NamedMedia, deadline: Deadline) -> StoredFrames:
        """The frames of a medium, all of them.

        Raises:
            ServingError: See :meth:`FrameDecoder.decode`; UNAVAILABLE where the file was changed meanwhile.
        """
        while True:
            stream, cached = self.begin(named, deadline)
            if (found := self.wait(stream, named.request.param, deadline)) is not None:
                return replace(found, cached=cached)

    def wait(self, stream: FrameStream, param: str | None, deadline: Deadline) -> StoredFrames | None:
        """All frames of a stream; None: it was given up for others' sake, and is to be begun anew.

        Raises:
            ServingError: As :meth:`frames`.
        """
        try:
            if not stream.wait(deadline, _DOING) or stream.planned is None:
                return None
            return StoredFrames(stream.buffer, stream.planned)
        except ServingError as error:
            raise _of(error, param) from None
        finally:
            stream.leave(deadline)

    def stop(self, request_id: str) -> None:
        """A request was stopped: what was handed over for it is not wanted by it any more."""
        with self._lock:
            decoding = list(self._decoding)
        for stream in decoding:
            stream.stop(request_id)

    def give_back(self) -> None:
        """The host is short of open files or memory: half of what is kept goes. (Each medium that is kept is an open file.)"""
        self._cache.halve()

    def _decode(self, named: NamedMedia, stream: FrameStream) -> None:
        """The work, by a thread of its own."""
        fault: ServingError | None = None
        try:
            with named.medium:
                began = time.monotonic()
                decoded = self._decoded(named, stream)
                seconds = time.monotonic() - began
                self._note(named, stream, decoded, seconds)
        except ServingError as error:
            fault = ServingError(error.code, error.message, error.param)  # without its traceback
        except Exception as error:
            _log.exception("a medium could not be decoded")
            if short := shortage(error):
                self.give_back()
                fault = short
            else:
                fault = ServingError(ErrorCode.INTERNAL, f"{type(error).__name__}; the server's log holds the reason")
        with self._lock:
            if self._shared.get(named.key) is stream:
                del self._shared[named.key]
        self._on_decoded()
        if fault is None:
            stream.finish(decoded, seconds)
        else:
            stream.fail(fault)
        with self._lock:
            self._decoding.discard(stream)

    def _decoded(self, named: NamedMedia, stream: FrameStream) -> DecodedMedia:
        progress = _Progress(self, named, stream)
        request = replace(named.request, param=None)  # an error's field is each request's own
        decoded = self._decoder.decode(named.medium.fd, request, stream.buffer, stream.deadline, progress)
        if stream.planned is not None and decoded != replace(stream.planned, damaged_frames=decoded.damaged_frames):
            raise ServingError(ErrorCode.INTERNAL, "the decoder answered what it should not")
        if Identity.of(named.medium.fd) != named.identity and not named.medium.private:
            raise ServingError(ErrorCode.UNAVAILABLE, "the file was changed while it was read; try again", "url")
        return decoded

    def _note(self, named: NamedMedia, stream: FrameStream, decoded: DecodedMedia, seconds: float) -> None:
        self._meter.add("internvideo_decode_seconds_total", seconds)
        self._meter.add("internvideo_frames_decoded_total", decoded.frame_count)
        if decoded.damaged_frames:
            _log.warning("%d of %d sampled frames of a video are damaged", decoded.damaged_frames, decoded.frame_count)
            self._meter.add("internvideo_frames_damaged_total", decoded.damaged_frames)
        if named.lasting:
            if self._keeps(named, decoded):
                self._cache.put(named.key, StoredFrames(stream.buffer, decoded))
            with self._lock:
                self._known[named.key] = decoded

    def _keeps(self, named: NamedMedia, decoded: DecodedMedia) -> bool:
        """Whether the frame cache takes a medium's frames."""
        return named.lasting and decoded.frame_count * FRAME_BYTES <= self._cache.capacity

    def planned(self, named: NamedMedia, stream: FrameStream, decoded: DecodedMedia) -> None:
        """It is known what will be decoded: what is kept nowhere is let go as it is used, so nobody else may join."""
        if not self._keeps(named, decoded):
            with self._lock:
                if self._shared.get(named.key) is stream:
                    del self._shared[named.key]
            stream.not_kept()


class _Progress:
    """A decode as it goes on. See :class:`internvideo_server.preprocessing.video.Progress`."""

    def __init__(self, store: FrameStore, named: NamedMedia, stream: FrameStream) -> None:
        self._store, self._named, self._stream = store, named, stream

    def plan(self, planned: DecodedMedia) -> None:
        self._store.planned(self._named, self._stream, planned)
        self._stream.plan(planned)

    def add(self, groups: list[int]) -> int:
        return self._stream.add(groups)


def _of(error: ServingError, param: str | None) -> ServingError:
    """The same error of a request whose field that is."""
    return ServingError(error.code, error.message, ".".join(filter(None, (param, error.param))) or None)
