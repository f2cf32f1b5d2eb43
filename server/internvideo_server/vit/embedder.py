"""Embeddings of media by content: what the Triton model `vit` does for one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from internvideo_server.cache import ByteLru, Flight, SingleFlight
from internvideo_server.deadline import Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid
from internvideo_server.handoff import Ending, FramesFailedError, IncomingFrames, Reservations, Reserved
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.metrics import Meter

from .scheduler import ChunkModel, TowerQueue
from .table_buffers import RegionPool
from .task import Frames, Task


@dataclass(frozen=True)
class NamedFrames:
    """One medium of a request.

    Attributes:
        key: Of its frames.
        count: How many frames came with the request; 0: they, or the embeddings, wait under its reservation.
    """

    key: bytes
    count: int


@dataclass(frozen=True)
class Table:
    """A request's prompt table.

    Attributes:
        rows: [16 T, hidden]; one zero row, which no id refers to, where there are no frames.
        release: To be called once nobody reads the rows any more.
        endings: How the decoding of media ended whose frames came over the local socket, by key.
    """

    rows: Tensor
    release: Callable[[], None]
    endings: Mapping[bytes, Ending] = field(default_factory=dict)


class Embedder:
    """The tower behind a cache, and the regions in which its tables leave. Thread-safe.

    The tower writes a medium's rows into the region of the first request that wants them, and then a copy of them for the cache
    and for the others that want them. What is in the cache is handed over in place where it is all that a request wants.

    Args:
        model: Makes embeddings.
        regions: Where tables are put together, on the model's device.
        cache_bytes: Of the embeddings that are kept, on the model's device; 0: none.
        meter: Counts the work.
        most_with_frames: Requests for which frames may wait.

    Attributes:
        reservations: Embeddings and frames that wait for requests on their way here.
    """

    def __init__(
        self, model: ChunkModel, regions: RegionPool, cache_bytes: int, meter: Meter, most_with_frames: float = float("inf")
    ) -> None:
        self._model, self._regions, self._meter = model, regions, meter
        self._row_bytes = model.hidden_size * model.dtype.itemsize
        self._cache: ByteLru[Tensor] = ByteLru("embeddings", cache_bytes, _bytes, meter)
        self._tower = TowerQueue(model)
        self._flights: SingleFlight[Tensor | None] = SingleFlight()  # None: no copy was kept, nobody else can want it
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._no_rows = torch.zeros((1, model.hidden_size), dtype=model.dtype, device=model.device)
        self.reservations: Reservations[Tensor] = Reservations(self._cache, most_with_frames)

    def table(self, frames: Tensor, media: list[NamedFrames], reservation: int, deadline: Deadline) -> Table:
        """Rows of the prompt table for a request's media, in their order.

        Args:
            frames: uint8 [T, 3, 448, 448], those of the media that came with the request, one after the other.
            media: All of them; empty where ``frames`` stand for themselves (a client that calls `vit` alone).
            reservation: Under which embeddings and frames of the others wait, 0: none.
            deadline: Ends waiting and work early.

        Raises:
            ServingError: INVALID_ARGUMENT; DEADLINE_EXCEEDED: what waited for the request is gone; UNAVAILABLE: no region became
                free in time; CANCELLED.
            ChunkFailedError: In the tower.
        """
        reserved = self.reservations.claim(reservation)
        parts = self._parts(frames, media, reserved)
        if not parts:
            return Table(self._no_rows, lambda: None)
        if len(parts) == 1 and parts[0].known is not None and parts[0].key is not None:
            self._cache.count(parts[0].key, hit=True)
            return Table(parts[0].known, lambda: None, _endings(reserved))
        region = self._regions.take(sum(part.rows for part in parts), self._row_bytes, deadline)
        try:
            rows = region.rows(sum(part.rows for part in parts), self._model.hidden_size, self._model.dtype)
            self._fill(rows, parts, deadline)
        except BaseException:
            region.release()
            raise
        return Table(rows, region.release, _endings(reserved))

    def close(self) -> None:
        """End the tower's thread."""
        self._tower.close()

    def _parts(self, frames: Tensor, media: list[NamedFrames], reserved: Reserved[Tensor]) -> list[_Part]:
        if not media:
            return [_Part(None, _frame_rows(frames), frames=frames)] if len(frames) else []
        if sum(medium.count for medium in media) != len(frames):
            raise invalid(f"frame_counts say {sum(medium.count for medium in media)} frames, {len(frames)} came", "frame_counts")
        parts: dict[bytes, _Part] = {}
        order = []
        for medium, sent in zip(media, torch.split(frames, [medium.count for medium in media]), strict=True):
            known = reserved.embeddings.get(medium.key)
            if medium.key in parts:
                pass
            elif known is not None:
                parts[medium.key] = _Part(medium.key, len(known), known=known)
            elif medium.count or medium.key in reserved.frames:
                own: Frames = sent if medium.count else reserved.frames[medium.key]
                known = self._cache.get(medium.key, count=False)  # another request may have brought the same a moment before
                param = reserved.params.get(medium.key)
                parts[medium.key] = _Part(medium.key, _frame_rows(own), frames=own, known=known, param=param)
            else:
                raise ServingError(ErrorCode.DEADLINE_EXCEEDED, "the request came to the vision model after its deadline")
            order.append(parts[medium.key])
        return order

    def _fill(self, rows: Tensor, parts: list[_Part], deadline: Deadline) -> None:
        """Bring all parts to their places."""
        wanted = Deadline(deadline.at, deadline.cancelled)  # ends also when this request fails for another reason
        tasks: list[Task] = []  # that write into the region
        places = torch.split(rows, [part.rows for part in parts])
        try:
            joined: dict[int, tuple[Flight[Tensor | None], bool]] = {}
            for i, part in enumerate(parts):  # all start before the first is waited for, so that they share chunks
                if part.known is None and part not in parts[:i]:
                    joined[i] = self._join(part, places[i], wanted, tasks)
            made = set()
            for i, (flight, leads) in joined.items():
                while not flight.wait(wanted, "waiting for the vision tower"):
                    flight, leads = self._join(parts[i], places[i], wanted, tasks)
                try:
                    parts[i].known = flight.result()
                except FramesFailedError as error:  # in this request's own field
                    fault = error.fault
                    param = ".".join(filter(None, (parts[i].param, fault.param))) or None
                    raise ServingError(fault.code, fault.message, param) from None
                if leads:
                    made.add(i)
        finally:
            wanted.cancel()
            for task in tasks:
                task.done.wait()
                self._meter.add("internvideo_vision_seconds_total", task.seconds)
                self._meter.add("internvideo_vision_frames_total", task.embedded)
        for i, part in enumerate(parts):
            if part.key is not None:
                self._cache.count(part.key, hit=i not in made)
        self._copy([(places[i], part.known) for i, part in enumerate(parts) if part.known is not None and i not in made])

    def _join(self, part: _Part, place: Tensor, wanted: Deadline, tasks: list[Task]) -> tuple[Flight[Tensor | None], bool]:
        """Wait for the rows with others, or have them made in ``place``: the flight, and whether that is so."""
        flight, leads = self._flights.join(part if part.key is None else part.key, wanted)
        if not leads:
            return flight, False
        try:
            if part.key is not None and (known := self._cache.get(part.key, count=False)) is not None:
                flight.finish(known)  # they were made a moment before
                return flight, False
            if part.frames is None:
                raise ServingError(ErrorCode.INTERNAL, "a medium has neither frames nor embeddings")
            keep, on_done = part.key is not None, partial(self._made, part.key, flight)
            tasks.append(self._tower.submit(part.frames, place, flight.deadline, keep=keep, on_done=on_done))
        except BaseException as error:
            flight.fail(error)
            raise
        return flight, True

    def _made(self, key: bytes | None, flight: Flight[Tensor | None], task: Task) -> None:
        if task.error is not None:
            flight.fail(task.error)
            return
        if key is not None and task.kept is not None:
            self._cache.put(key, task.kept)  # before the flight ends: who leads the next one looks here first
        flight.finish(task.kept)

    def _copy(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        """On a stream of its own, so that it does not wait for the tower's chunks."""
        if not copies:
            return
        with torch.inference_mode(), torch.cuda.stream(self._copies):  # no stream: does nothing
            for place, rows in copies:
                place.copy_(rows)
        if self._copies is not None:
            self._copies.synchronize()


class _Part:
    """The rows of one medium: known, or to be made of its frames."""

    def __init__(
        self,
        key: bytes | None,
        rows: int,
        frames: Frames | None = None,
        known: Tensor | None = None,
        param: str | None = None,
    ) -> None:
        self.key, self.rows, self.frames, self.known, self.param = key, rows, frames, known, param


def _frame_rows(frames: Frames) -> int:
    count = len(frames) if isinstance(frames, Tensor) else frames.frame_count
    if count == 0 or count % FRAMES_PER_GROUP:
        raise invalid(f"the number of frames must be a multiple of {FRAMES_PER_GROUP}, got {count}", "frames")
    return count * TOKENS_PER_FRAME


def _endings(reserved: Reserved[Tensor]) -> dict[bytes, Ending]:
    return {
        key: frames.ending
        for key, frames in reserved.frames.items()
        if isinstance(frames, IncomingFrames) and frames.ending is not None
    }


def _bytes(table: Tensor) -> int:
    return table.numel() * table.element_size()
