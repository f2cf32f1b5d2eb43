"""One request at work: a task reads the stream, whoever asks takes all that has come."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import grpc

from ._connection import TritonConnection
from ._media_files import SentMedia
from ._wire import TokenBatch, streamed, token_batch
from .errors import ApiError, from_code, from_triton, is_coded, reason_of

_END_TIMEOUT_S = 1.0
_STOPPED_TIMEOUT_S = 1.0  # from the stops to the end of the stream
_SUSPICIOUS_S = 10.0  # of silence
_NOTICED_S = 0.5
_UNHEALTHY_S = 30.0
_DIED = "a part of the server died while it worked on this request, and is being started again"

_log = logging.getLogger(__name__)


class _LostError(Exception):
    """Something that a request waits for has died; ``error`` is what its client is told."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Generation:
    """One request at work: iterate inside ``async with``; leaving it early ends the work in every model.

    Where the launcher starts again what died, a request that has no answer yet is asked again: after one death, no more, since
    the request may be what kills; where Triton calls a process that lives unhealthy, for half a minute.

    Raises (while iterating):
        ApiError: What the chain reported, or DEADLINE_EXCEEDED after a silence beyond the limit.
    """

    def __init__(self, connection: TritonConnection, request: Any, media: SentMedia) -> None:
        self._connection = connection
        self._request = request
        self._media = media
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._inbox: deque[TokenBatch | ApiError | _LostError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first_timeout_s = connection.first_token_timeout_s
        self._ended = False  # the chain has said its last word
        self._first_loss: float | None = None
        self._died = False  # something did while it worked on this request
        self._deaths = 0  # of anything, before it was asked
        self.answered = False  # a response has come: then the engine alone is at work
        self.request_id: str = request.id

    async def __aenter__(self) -> Generation:
        if self._connection.run_state is not None:
            self._connection.run_state.check_ready()
        try:
            await self._begin()
        except BaseException:
            self._media.close()
            raise
        self._connection.running.add(self)
        return self

    async def _begin(self) -> None:
        payload = await self._media.payload(streamed(self._request))
        self._deaths = 0 if self._connection.run_state is None else self._connection.run_state.deaths
        self._call = self._connection.stream(payload)
        self._reader = self._connection.in_background(self._read(self._call))

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.running.discard(self)
        self._forget_timer()
        self._media.close()
        if not self._ended:
            self._connection.in_background(self._end_early(self._call, self._reader, self.request_id))
        else:
            # A cancel between the final response and the end of the stream makes Triton 2.51 keep the request for ever: it then
            # waits for it when it is told to end.
            await self._read_to_the_end(self._call, self._reader, _END_TIMEOUT_S)

    def ask_report(self) -> asyncio.Task[dict[str, Any]]:
        """See :meth:`TritonConnection.report`; complete once the first response has come."""
        return self._connection.ask_report(self.request_id)

    def fail(self, error: ApiError, *, lost: bool) -> None:
        """End it from outside; ``lost``: because something died, so that it may be asked again."""
        self._inbox.append(_LostError(error) if lost else error)
        self._wake()

    async def __aiter__(self) -> AsyncIterator[TokenBatch]:
        async for batches in self.batches():
            for batch in batches:
                yield batch

    async def batches(self, heartbeat_s: float | None = None) -> AsyncIterator[list[TokenBatch]]:
        """All that has come since the last time; what arrives together is given together.

        Args:
            heartbeat_s: Give an empty list after so many seconds of silence; None: never.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._connection.request_timeout_s
        silence_s = self._first_timeout_s
        heard = beat = clock()
        while True:
            if not self._inbox:
                if self._ended:
                    return
                limit = min(heard + silence_s, deadline)
                if await self._quiet_until(limit, heard, None if heartbeat_s is None else beat + heartbeat_s):
                    now = clock()
                    if now >= limit:
                        raise self._too_long(now >= deadline, silence_s)
                    if heartbeat_s is not None and now >= beat + heartbeat_s:
                        beat = now
                        yield []
                continue
            heard = beat = clock()
            found: list[TokenBatch] = []
            while self._inbox and isinstance(batch := self._inbox[0], TokenBatch):
                found.append(batch)
                self._inbox.popleft()
            if found:
                silence_s = self._connection.inactivity_timeout_s
                if not self.answered:
                    self.answered = True
                    self._media.close()
                yield found
            elif self._inbox:
                await self._handle(self._inbox.popleft(), deadline)

    async def _quiet_until(self, limit: float, heard: float, beat: float | None) -> bool:
        """Wait for something to come; True where nothing did. The launcher is asked about a model that is silent for long."""
        suspicious = heard + _SUSPICIOUS_S
        clock = asyncio.get_running_loop().time
        if self._connection.run_state is not None and clock() < suspicious < limit:
            limit = suspicious
        loop = asyncio.get_running_loop()
        self._wake_at(limit if beat is None else min(limit, beat))
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._inbox or self._ended:
            return False
        if self._connection.run_state is not None and clock() >= suspicious:
            self._connection.run_state.suspect()
        return True

    def _wake_at(self, when: float) -> None:
        """Be woken then at the latest. A timer that is due earlier stays: it costs less than a new one for every token."""
        if self._timer is None or self._timer.when() > when:
            self._forget_timer()
            self._timer = asyncio.get_running_loop().call_at(when, self._ring)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._wake()

    def _too_long(self, whole: bool, silence_s: float) -> ApiError:
        if whole:
            return from_code(
                "DEADLINE_EXCEEDED",
                f"the request took longer than the {self._connection.request_timeout_s:g} s that one may take",
            )
        return from_code("DEADLINE_EXCEEDED", f"the server sent nothing for {silence_s:g} s; the request was ended")

    async def _handle(self, error: Any, deadline: float) -> None:
        """Raise it, or ask again where that helps."""
        if isinstance(error, ApiError):
            raise error
        if not await self._may_be_asked_again(deadline):
            raise error.error from None
        _log.warning("request %s had no answer yet and is asked again", self.request_id)
        self._connection.in_background(self._end_early(self._call, self._reader, self.request_id))
        self._inbox.clear()
        self.request_id = self._request.id = f"{self.request_id}-again"
        self._ended = False
        await self._begin()

    async def _may_be_asked_again(self, deadline: float) -> bool:
        """Wait until what died is back; False where nobody brings it back, not in time, or this request itself may be why."""
        run, clock = self._connection.run_state, asyncio.get_running_loop().time
        if run is None or self.answered:
            return False
        self._first_loss = self._first_loss or clock()
        try:
            async with asyncio.timeout(deadline - clock()):
                await asyncio.sleep(_NOTICED_S)  # a broken stream is seen before the launcher has written down why
                if run.deaths > self._deaths:
                    if self._died:
                        return False
                    self._died = True
                elif clock() > self._first_loss + _UNHEALTHY_S:
                    return False
                else:  # Triton calls a process unhealthy that stands still; if it stays so the launcher ends it
                    run.suspect()
                    await asyncio.sleep(_NOTICED_S)
                return await run.serving()
        except TimeoutError:
            return False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _read(self, call: Any) -> None:
        """A stream into the inbox, to its end."""
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                if self._ended or call is not self._call:
                    continue
                if response.error_message:
                    _log.info("request %s: %s", self.request_id, response.error_message)
                    error = from_triton(response.error_message)
                    lost = error.status == 503 and not is_coded(response.error_message)
                    self._end(call, _LostError(error) if lost else error)
                    continue
                result = response.infer_response
                self._inbox.append(token_batch(result))
                self._ended = result.parameters["triton_final_response"].bool_param
                self._wake()
            self._end(call, from_code("INTERNAL", "the server closed the stream before the answer was complete"))
        except asyncio.CancelledError:  # by grpc.aio, for a call that the server cancelled: nobody here wanted that
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            self._end(call, _LostError(from_code("UNAVAILABLE", _DIED)))
        except grpc.RpcError as failure:
            if not self._ended and call is self._call:
                _log.error("request %s: %s", self.request_id, reason_of(failure))
            error = from_triton(failure)
            self._end(call, _LostError(error) if error.status == 503 else error)
        except Exception:
            _log.exception("request %s: its stream cannot be read", self.request_id)
            self._end(call, from_code("INTERNAL", "the server failed to answer this request; its log holds the reason"))

    def _end(self, call: Any, error: ApiError | _LostError) -> None:
        if not self._ended and call is self._call:
            self._ended = True
            self._inbox.append(error)
            self._wake()

    async def _end_early(self, call: Any, reader: asyncio.Task[None] | None, request_id: str) -> None:
        stops = self._connection.in_background(self._connection.stop_twice(request_id))
        await self._read_to_the_end(call, reader, _STOPPED_TIMEOUT_S)
        await stops

    async def _read_to_the_end(self, call: Any, reader: asyncio.Task[None] | None, timeout_s: float) -> None:
        """Let the stream end by itself; cancel it if it does not."""
        if reader is not None and not (await asyncio.wait((reader,), timeout=timeout_s))[0]:
            _log.info("the stream of request %s did not end by itself", self.request_id)
            call.cancel()
