"""A medium while it is decoded: what will come, what is there, who waits for it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError
from internvideo_server.frame_buffer import FrameBuffer
from internvideo_server.handoff import Ending, Fault, FramePart, Held, MoreFrames
from internvideo_server.limits import FRAMES_PER_GROUP

from .video import DecodedMedia

_TELL_SECONDS = 10.0  # that `vit` may take to hear of an end: less than a millisecond, but on a machine at its limit
_PAUSE = 0.05


class Receiver(Protocol):
    """The way to `vit` (:class:`internvideo_server.handoff.Reservation`)."""

    def hold_frames(self, parts: Sequence[tuple[FramePart, FrameBuffer]]) -> bool:
        """Leave frames for the request."""
        ...

    def tell(self, more: MoreFrames) -> Held | None:
        """Tell of streams that were left; None: there was no answer."""
        ...


class FrameStream:
    """One medium's frames, as they are decoded into memory. Thread-safe.

    Its work goes on while anybody waits: a request in this process, or one that it was handed over for.

    Attributes:
        buffer: Where the frames are written; not to be read before their groups are whole.
        deadline: Of the work: expired once nobody waits any more.
        planned: What will come; None: not known yet. The damage is known at the end.
    """

    def __init__(self, buffer: FrameBuffer | None = None) -> None:
        self.buffer = buffer or FrameBuffer()
        self.planned: DecodedMedia | None = None
        self.deadline = Deadline(cancelled=self._abandoned)
        self._number = secrets.randbits(62) | 1
        self._changed = threading.Condition(threading.RLock())  # guards all below
        self._waiters: list[tuple[str, Deadline]] = []
        self._given_up = False
        self._kept = True
        self._groups: list[int] = []
        self._told = 0  # of them, to `vit`
        self._used: int | None = None  # of the frames, which go when `vit` has used them; None: they stay
        self._receiver: Receiver | None = None
        self._ending: Ending | None = None
        self._error: ServingError | None = None

    @classmethod
    def whole(cls, buffer: FrameBuffer, decoded: DecodedMedia) -> FrameStream:
        """Frames that are there."""
        stream = cls(buffer)
        stream.finish(decoded, 0.0)
        return stream

    def join(self, deadline: Deadline) -> bool:
        """Wait for it too; False: it is too late, the work was given up."""
        with self._changed:
            if not self._given_up and self._error is None:
                self._waiters.append(("", deadline))
                return True
            return False

    def leave(self, deadline: Deadline) -> None:
        """Wait no more."""
        with self._changed:
            self._waiters = [waiter for waiter in self._waiters if waiter[1] is not deadline]

    def stop(self, request_id: str) -> None:
        """The request for which it was handed over was stopped."""
        with self._changed:
            for name, deadline in self._waiters:
                if name == request_id:
                    deadline.cancel()

    def plan(self, planned: DecodedMedia) -> None:
        """The decoder's: what will come."""
        self.buffer.reserve(planned.frame_count)
        with self._changed:
            self.planned = planned
            self._changed.notify_all()

    def add(self, groups: list[int]) -> int:
        """The decoder's: these groups are whole.

        Returns:
            Frames that wait for the tower, in memory that goes when it has used them; 0 where it stays.
        """
        with self._changed:
            self._groups += groups
            self._tell()
            return 0 if self._receiver is None or self._used is None else self._told * FRAMES_PER_GROUP - self._used

    def finish(self, decoded: DecodedMedia, seconds: float) -> None:
        """The decoder's: all is there.

        Args:
            decoded: With its damage.
            seconds: That it took.
        """
        whole = set(self._groups)
        with self._changed:
            self.planned = decoded
            self._groups += [group for group in range(-(-decoded.frame_count // FRAMES_PER_GROUP)) if group not in whole]
        self._end(Ending(decoded.damaged_frames, seconds))

    def fail(self, error: ServingError) -> None:
        """The decoder's: no more will come."""
        self._error = error
        self._end(Ending(fault=Fault(error.code, error.message, error.param)))

    def wait_planned(self, deadline: Deadline, doing: str) -> bool:
        """Wait until it is known what will come; False: the work was given up for others' sake, and is to be done anew.

        Raises:
            ServingError: The decoder's; CANCELLED or DEADLINE_EXCEEDED by the caller's deadline.
        """
        return self._wait(lambda: self.planned is not None, deadline, doing)

    def wait(self, deadline: Deadline, doing: str) -> bool:
        """Wait for all frames; otherwise as :meth:`wait_planned`."""
        return self._wait(lambda: self._ending is not None, deadline, doing)

    @property
    def seconds(self) -> float:
        """That the work took."""
        return 0.0 if self._ending is None else self._ending.seconds

    def not_kept(self) -> None:
        """The frames will be kept nowhere, and nobody else can join: each may go when it is used."""
        with self._changed:
            self._kept = False

    def _wait(self, condition: Callable[[], bool], deadline: Deadline, doing: str) -> bool:
        with self._changed:
            while not (condition() or self._error is not None):
                deadline.check(doing)
                self._changed.wait(POLL_SECONDS)
            deadline.check(doing)
            if self._error is None:
                return True
            if self._given_up and self._error.code in (ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED):
                return False
            raise ServingError(self._error.code, self._error.message, self._error.param)

    def _abandoned(self) -> bool:
        with self._changed:
            self._given_up = self._given_up or all(deadline.expired() for _, deadline in self._waiters)
            return self._given_up

    def _end(self, ending: Ending) -> None:
        until = time.monotonic() + _TELL_SECONDS
        with self._changed:
            self._ending = ending
            self._changed.notify_all()
            self._tell()
        while time.monotonic() < until:
            with self._changed:
                if self._receiver is None:
                    return
                self._tell()
            time.sleep(_PAUSE)

    def _tell(self) -> None:
        if self._receiver is None:
            return
        answer = self._receiver.tell(MoreFrames(self._number, tuple(self._groups[self._told :]), self._ending))
        if answer is None:
            return
        if answer.wanted:
            self._told = len(self._groups)
            self._used = None if self._used is None else answer.used
        if not answer.wanted or self._ending is not None:
            self._receiver = None
            for name, deadline in self._waiters:
                if name:
                    deadline.cancel()


def hand_over(
    streams: dict[bytes, FrameStream], params: dict[bytes, str], receiver: Receiver, request_id: str, deadline: Deadline
) -> bool:
    """Leave frames in `vit` for a request, those that are there and those that are still to come.

    Args:
        streams: By key; each is planned.
        params: The request's fields that hold the media.
        receiver: The request's reservation.
        request_id: Triton's, by which :meth:`FrameStream.stop` knows it.
        deadline: With which the request waited for them here.

    Returns:
        Whether they were taken; else they must go another way.
    """
    with ExitStack() as locks:
        for stream in sorted(streams.values(), key=lambda stream: stream._number):
            locks.enter_context(stream._changed)
        parts = []
        for key, stream in streams.items():
            if stream.planned is None or not stream.planned.frame_count or stream._error is not None:
                return False
            alone = len(stream._waiters) == 1 and not stream._kept
            count, groups = stream.planned.frame_count, tuple(stream._groups)
            part = FramePart(key, count, stream._number, groups, stream._ending, params.get(key), alone)
            parts.append((part, stream.buffer))
        if not receiver.hold_frames(parts):
            return False
        for stream, (part, _) in zip(streams.values(), parts, strict=True):
            if stream._ending is None:
                stream._told, stream._receiver, stream._used = len(stream._groups), receiver, 0 if part.frees else None
                stream._waiters.append((request_id or "-", Deadline(deadline.at)))
            stream.leave(deadline)
        return True
