"""Embeddings of media by content: what the Triton model `vit` does for one request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .cache import ByteLru, LeaseBook, TicketBook
from .errors import ErrorCode, ServingError, invalid
from .limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from .media import POLL_SECONDS, Budget
from .metrics import Meter
from .regions import RegionPool
from .scheduling import ChunkModel, Frames, Task, TowerQueue
from .video import FrameBuffer
from .vision import Stopped


@dataclass(frozen=True)
class NamedFrames:
    """One medium of a request.

    Attributes:
        key: Of its frames.
        count: How many frames came with the request; 0: they, or the embeddings, wait under its ticket.
    """

    key: bytes
    count: int


@dataclass(frozen=True)
class Table:
    """A request's prompt table.

    Attributes:
        rows: [16 T, hidden]; one zero row, which no id refers to, where there are no frames.
        release: To be called once nobody reads the rows any more.
    """

    rows: Tensor
    release: Callable[[], None]


class Embedder:
    """The tower behind a cache, and the regions in which its tables leave. Thread-safe.

    The tower writes a medium's rows into the region of the first request that wants them, and then a copy of them for the cache
    and for the others that want them. What is in the cache is handed over in place where it is all that a request wants.

    Args:
        model: Makes embeddings.
        regions: Where tables are put together, on the model's device.
        cache_bytes: Of the embeddings that are kept, on the model's device; 0: none.
        meter: Counts the work.
        max_parcels: Requests for which frames may wait.

    Attributes:
        leases: Embeddings that requests on their way here were promised.
        parcels: Frames that wait for requests on their way here.
    """

    def __init__(
        self, model: ChunkModel, regions: RegionPool, cache_bytes: int, meter: Meter, max_parcels: float = float("inf")
    ) -> None:
        self._model, self._regions, self._meter = model, regions, meter
        self._row_bytes = model.hidden_size * model.dtype.itemsize
        self._cache: ByteLru[Tensor] = ByteLru("embeddings", cache_bytes, meter)
        self._tower = TowerQueue(model)
        self._flights: dict[bytes, _Flight] = {}
        self._lock = threading.Lock()  # guards the flights, and the cache against missing what just landed
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._no_rows = torch.zeros((1, model.hidden_size), dtype=model.dtype, device=model.device)
        self.leases: LeaseBook[Tensor] = LeaseBook(self._cache, _bytes)
        self.parcels: TicketBook[FrameBuffer] = TicketBook(max_parcels)

    def table(self, frames: Tensor, media: list[NamedFrames], ticket: int, budget: Budget) -> Table:
        """Rows of the prompt table for a request's media, in their order.

        Args:
            frames: uint8 [T, 3, 448, 448], those of the media that came with the request, one after the other.
            media: All of them; none: ``frames`` stand for themselves (a client that calls `vit` alone).
            ticket: Under which embeddings and frames of the others wait, 0: none.
            budget: Ends waiting and work early.

        Raises:
            ServingError: INVALID_ARGUMENT; DEADLINE_EXCEEDED: what waited for the request is gone; UNAVAILABLE: no region became
                free in time; CANCELLED.
            Stopped: The budget ended while the tower worked.
            ChunkFailedError: In the tower.
        """
        parts = self._parts(frames, media, self.leases.take(ticket), self.parcels.take(ticket))
        if not parts:
            return Table(self._no_rows, lambda: None)
        if len(parts) == 1 and parts[0].known is not None:
            self._cache.count(hit=True)
            return Table(parts[0].known, lambda: None)
        region = self._regions.take(sum(part.rows for part in parts), self._row_bytes, budget)
        try:
            rows = region.rows(sum(part.rows for part in parts), self._model.hidden_size, self._model.dtype)
            self._fill(rows, parts, budget)
        except BaseException:
            region.release()
            raise
        return Table(rows, region.release)

    def drop(self, ticket: int) -> None:
        """Let go of what waits for a request that is not going to come."""
        self.leases.take(ticket)
        self.parcels.take(ticket)

    def stop(self, request_id: str) -> None:
        """Let go of what waits for a request."""
        self.leases.stop(request_id)
        self.parcels.stop(request_id)

    def close(self) -> None:
        """End the tower's thread."""
        self._tower.close()

    def _parts(
        self, frames: Tensor, media: list[NamedFrames], leased: dict[bytes, Tensor], given: dict[bytes, FrameBuffer]
    ) -> list[_Part]:
        if not media:
            return [_Part(None, _frame_rows(frames), frames=frames)] if len(frames) else []
        if sum(medium.count for medium in media) != len(frames):
            raise invalid(f"frame_counts say {sum(medium.count for medium in media)} frames, {len(frames)} came", "frame_counts")
        parts: dict[bytes, _Part] = {}
        order = []
        for medium, sent in zip(media, torch.split(frames, [medium.count for medium in media]), strict=True):
            known = leased.get(medium.key)
            if medium.key in parts:
                pass
            elif known is not None:
                parts[medium.key] = _Part(medium.key, len(known), known=known)
            elif medium.count or medium.key in given:
                own: Frames = sent if medium.count else given[medium.key]
                known = self._cache.get(medium.key, count=False)  # another request may have brought the same a moment before
                parts[medium.key] = _Part(medium.key, _frame_rows(own), frames=own, known=known)
            else:
                raise ServingError(ErrorCode.DEADLINE_EXCEEDED, "the request came to the vision model after its deadline")
            order.append(parts[medium.key])
        return order

    def _fill(self, rows: Tensor, parts: list[_Part], budget: Budget) -> None:
        """Bring all parts to their places."""
        wish = _Wish(budget)
        places = torch.split(rows, [part.rows for part in parts])
        try:
            flights: dict[int, _Flight | None] = {}
            for i, part in enumerate(parts):  # all start before the first is waited for, so that they share chunks
                if part.known is None and part not in parts[:i]:
                    flights[i] = self._board(part, places[i], wish)
            made = {i for i, flight in flights.items() if self._land(parts[i], places[i], flight, wish)}
        finally:
            wish.gone = True
            for task in wish.tasks:  # they write into the region
                task.done.wait()
                self._meter.add("internvideo_vision_seconds_total", task.seconds)
                self._meter.add("internvideo_vision_frames_total", task.embedded)
        for i, part in enumerate(parts):
            if part.key is not None:
                self._cache.count(hit=i not in made)
        self._copy([(places[i], part.known) for i, part in enumerate(parts) if part.known is not None and i not in made])

    def _board(self, part: _Part, place: Tensor, wish: _Wish) -> _Flight | None:
        """Join those who wait for the same rows, or have them made in ``place``. None: they are there by now."""
        with self._lock:
            if part.key is not None:
                part.known = self._cache.get(part.key, count=False)
                if part.known is not None:
                    return None
                flight = self._flights.get(part.key)
                if flight is not None:
                    flight.wishes.append(wish)
                    return flight
            if part.frames is None:
                raise ServingError(ErrorCode.INTERNAL, "a medium has neither frames nor embeddings")
            flight = _Flight(wish)
            flight.task = self._tower.submit(
                part.frames, place, flight.over, keep=part.key is not None, on_done=partial(self._landed, part.key, flight)
            )
            wish.tasks.append(flight.task)
            if part.key is not None:
                self._flights[part.key] = flight
            return flight

    def _landed(self, key: bytes | None, flight: _Flight, task: Task) -> None:
        with self._lock:
            if key is not None and self._flights.get(key) is flight:
                del self._flights[key]
            if key is not None and task.kept is not None:
                self._cache.put(key, task.kept, _bytes(task.kept))

    def _land(self, part: _Part, place: Tensor, flight: _Flight | None, wish: _Wish) -> bool:
        """Wait for the rows: whether they were made in ``place``. If not they are in ``part.known``."""
        while flight is not None:
            leads = flight.task in wish.tasks
            while not flight.task.done.wait(None if leads else POLL_SECONDS):
                wish.budget.check("waiting for embeddings that another request has made")
            try:
                part.known = flight.task.result()
                return leads
            except Stopped:
                if wish.over():
                    raise
                flight = self._board(part, place, wish)  # all who came before had left
        return False

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

    def __init__(self, key: bytes | None, rows: int, frames: Frames | None = None, known: Tensor | None = None) -> None:
        self.key, self.rows, self.frames, self.known = key, rows, frames, known


class _Wish:
    """One request's interest in flights."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.gone = budget, False
        self.tasks: list[Task] = []  # that write into this request's region

    def over(self) -> bool:
        return self.gone or self.budget.cancelled.is_set() or time.monotonic() >= self.budget.deadline


class _Flight:
    """A medium in the tower, and who waits for it."""

    task: Task

    def __init__(self, wish: _Wish) -> None:
        self.wishes = [wish]

    def over(self) -> bool:
        return all(wish.over() for wish in self.wishes)


def _frame_rows(frames: Frames) -> int:
    count = frames.frame_count if isinstance(frames, FrameBuffer) else len(frames)
    if count == 0 or count % FRAMES_PER_GROUP:
        raise invalid(f"the number of frames must be a multiple of {FRAMES_PER_GROUP}, got {count}", "frames")
    return count * TOKENS_PER_FRAME


def _bytes(table: Tensor) -> int:
    return table.numel() * table.element_size()
