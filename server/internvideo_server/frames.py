"""Frames of media by content: decoded once, kept within a number of bytes, shared by the requests that want them together."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock

from .cache import ByteLru, Flights
from .errors import ErrorCode, ServingError
from .media import Budget, Digests, Identity, Media
from .metrics import Meter
from .video import DecodeRequest, FrameBuffer, FrameDecoder, frames_key

_KNOWN_COUNTS = 65536


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


class FrameStore:
    """The decoder behind a cache. Thread-safe.

    Args:
        decoder: Decodes what is not there.
        cache_bytes: Of the frames that are kept; 0: none.
        meter: Counts the work.
    """

    def __init__(self, decoder: FrameDecoder, cache_bytes: int, meter: Meter) -> None:
        self._decoder, self._meter = decoder, meter
        self._cache: ByteLru[FrameBuffer] = ByteLru("frames", cache_bytes, meter)
        self._flights: Flights[FrameBuffer] = Flights()
        self._digests = Digests()
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = Lock()

    def name(self, medium: Media, request: DecodeRequest, budget: Budget) -> NamedMedia:
        """Name the frames of a medium, without decoding it.

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        identity = Identity.of(medium.fd)
        digest = self._digests.digest(medium, budget)
        # A file written just now may be written again without another time stamp.
        lasting = medium.private or identity.settled
        key = frames_key(digest, request, self._decoder.limits) if lasting else secrets.token_bytes(32)
        return NamedMedia(medium, request, key, identity, lasting)

    def count(self, key: bytes) -> int | None:
        """How many frames a medium has, if it was decoded before."""
        with self._lock:
            return self._counts.get(key)

    def frames(self, named: NamedMedia, budget: Budget) -> FrameBuffer:
        """The frames of a medium, not to be written to.

        Raises:
            ServingError: See :meth:`FrameDecoder.decode`; UNAVAILABLE where the file was changed meanwhile.
        """
        kept = self._cache.get(named.key)
        if kept is not None:
            return kept
        plain = replace(named, request=replace(named.request, param=None))  # an error's field is each request's own
        try:
            return self._flights.run(named.key, budget, lambda shared: self._decode(plain, shared))
        except ServingError as error:
            prefix = named.request.param
            raise ServingError(error.code, error.message, ".".join(filter(None, (prefix, error.param))) or None) from None

    def _decode(self, named: NamedMedia, budget: Budget) -> FrameBuffer:
        began = time.monotonic()
        frames = FrameBuffer()
        self._decoder.decode(named.medium.fd, named.request, frames, budget)
        if Identity.of(named.medium.fd) != named.identity and not named.medium.private:
            raise ServingError(ErrorCode.UNAVAILABLE, "the file was changed while it was read; try again", "url")
        self._meter.add("internvideo_decode_seconds_total", time.monotonic() - began)
        self._meter.add("internvideo_frames_decoded_total", frames.frame_count)
        if named.lasting:
            self._cache.put(named.key, frames, frames.nbytes)
            with self._lock:
                self._counts[named.key] = frames.frame_count
                while len(self._counts) > _KNOWN_COUNTS:
                    self._counts.popitem(last=False)
        return frames
