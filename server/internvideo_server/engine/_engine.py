"""The embedded engine: requests wait here, enter the batch when there is room, and are answered from one thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import LlamaForCausalLM

from ..limits import EngineLimits
from ._generation import Generation, Output
from ._manager import BatchManager, load_language_model
from ._request import GenerationRequest, RefusedRequestError

_log = logging.getLogger(__name__)
_DEAD = "the engine's generation thread has ended; unload and load the model"


class Sink(Protocol):
    """Where a request's responses go. Called from the engine's own thread."""

    def send(self, output: Output) -> None:
        """Send one response; ``output.final`` marks the last."""

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        """End the request with an error."""

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""


@dataclass
class _Work:
    client_id: str  # the Triton request id, for `stop`
    generation: Generation
    sink: Sink
    slot: int | None = None  # of the prompt tables, while in the batch
    answered: bool = False  # nothing more is to be sent


class Engine:
    """Runs requests on transformers' continuous batching and answers them as NVIDIA's ``tensorrtllm`` backend does.

    Args:
        model: The language model, on its device; from now on the engine's.
        limits: What requests may ask for.
        max_queue_size: Requests that may wait for a place in the batch; 0 = no limit.
        reuse: Share the KV cache of equal prompts' beginnings.
        cancellation_check_period: Seconds between looks at each client's cancellation.
        report: Called at the same times with the number of requests in the batch and waiting.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        limits: EngineLimits,
        *,
        max_queue_size: int,
        reuse: bool,
        cancellation_check_period: float,
        report: Callable[[int, int], None] = lambda active, waiting: None,
    ) -> None:
        self.limits = limits
        self._max_queue_size = max_queue_size
        self._period = cancellation_check_period
        self._report = report
        self._lock = threading.Lock()  # guards the three below
        self._waiting: deque[_Work] = deque()
        self._running: dict[str, _Work] = {}  # by the manager's id; cancelled ones too until no pass holds them
        self._ids = itertools.count()
        self._closing = threading.Event()
        self._manager = BatchManager(model, limits, share_prefixes=reuse, on_dropped=self._leave_batch)
        self._thread = threading.Thread(target=self._answer, name="engine-answers", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, engine_dir: Path, device: torch.device, **options: Any) -> Engine:
        """The engine of a directory that ``build_scripts/export_llm.py`` wrote: ``config.json`` (limits) and ``llama/``."""
        limits = EngineLimits.from_engine_dir(engine_dir)
        return cls(load_language_model(engine_dir / "llama", limits.dtype, device), limits, **options)

    def submit(self, client_id: str, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request.

        Raises:
            RefusedRequestError: The queue is full, or the engine has died.
        """
        work = _Work(client_id, Generation(request), sink)
        with self._lock:
            self._refuse_if_dead()
            if self._max_queue_size and len(self._waiting) >= self._max_queue_size:
                raise RefusedRequestError(
                    f"Maximum queue size of {self._max_queue_size} has been reached, please try again later"
                )
            self._waiting.append(work)
            self._admit()

    def stop(self, client_id: str) -> None:
        """End the request with this id; it gets its final response. An unknown id is no error, as in NVIDIA's backend.

        Raises:
            RefusedRequestError: The engine has died: a ``stop`` is also how a client finds out whether it lives.
        """
        with self._lock:
            self._refuse_if_dead()
            for work in [*self._waiting, *self._running.values()]:
                if work.client_id == client_id and not work.answered:
                    self._send(work, work.generation.output(final=True))
                    self._end(work)

    def close(self) -> None:
        """End everything; requests under way fail."""
        self._closing.set()
        self._manager.close()
        self._thread.join()
        with self._lock:
            self._fail_all("the engine was unloaded")

    def _refuse_if_dead(self) -> None:
        if self._closing.is_set() or not self._manager.alive:
            raise RefusedRequestError(_DEAD)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.limits.max_batch_size:
            work = self._waiting.popleft()
            request = work.generation.request
            try:
                work.slot, ids = self._manager.tables.admit(request.input_ids, request.extra_ids, request.table)
            except ValueError as error:
                self._fail(work, str(error))
                continue
            except Exception as error:  # no memory for its rows, say: this request's fault alone
                _log.exception("request %s could not enter the batch", work.client_id)
                self._fail(work, f"the prompt table could not be taken: {type(error).__name__}")
                continue
            name = str(next(self._ids))
            self._running[name] = work
            one_token_stops = [word[0] for word in request.stop_words if len(word) == 1]
            self._manager.add(name, ids, request.max_new_tokens, [request.sampling.end_id, *one_token_stops], request.sampling)

    def _answer(self) -> None:
        next_check = 0.0
        while not self._closing.is_set():
            result = self._manager.next_output(timeout=self._period)
            with self._lock:
                if result is not None:
                    self._advance(result)
                if (now := time.monotonic()) >= next_check:
                    next_check = now + self._period
                    self._end_cancelled()
                    self._tell()
                if not self._manager.alive:
                    self._fail_all(_DEAD)

    def _tell(self) -> None:
        try:
            self._report(len(self._running), len(self._waiting))
        except Exception:  # a figure must not end the thread that answers all
            _log.exception("the number of requests could not be reported")

    def _advance(self, result: object) -> None:
        name, tokens, error = result.request_id, result.generated_tokens, result.error  # type: ignore[attr-defined]
        finished: bool = result.is_finished()  # type: ignore[attr-defined]
        work = self._running.get(name)
        if work is None:
            return
        if not work.answered and error:
            self._fail(work, f"Executor failed process requestId {name} due to the following error: {error}")
        elif not work.answered:
            self._send(work, work.generation.advance(tokens, finished=finished))
        if finished:
            self._remove(name)
        elif work.answered:  # ended by a stop word, `stop` or its client: the manager does not know yet
            self._manager.cancel(name)

    def _send(self, work: _Work, output: Output | None) -> None:
        if output is not None:
            work.answered = output.final
            self._deliver(work, lambda: work.sink.send(output))

    def _fail(self, work: _Work, text: str, *, cancelled: bool = False) -> None:
        work.answered = True
        self._deliver(work, lambda: work.sink.fail(text, cancelled=cancelled))

    def _deliver(self, work: _Work, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception:  # one client's trouble must not end the thread that answers all
            _log.exception("a response of request %s could not be sent", work.client_id)
            if not work.answered:
                work.answered = True
                with contextlib.suppress(Exception):
                    work.sink.fail("a response could not be sent")

    def _end_cancelled(self) -> None:
        for work in [*self._waiting, *self._running.values()]:
            if not work.answered and work.sink.is_cancelled():
                self._fail(work, "the request was cancelled by its client", cancelled=True)
                self._end(work)

    def _end(self, work: _Work) -> None:
        if work in self._waiting:
            self._waiting.remove(work)
        for name, running in self._running.items():
            if running is work:
                self._manager.cancel(name)

    def _leave_batch(self, name: str) -> None:
        with self._lock:
            self._remove(name)

    def _remove(self, name: str) -> None:
        work = self._running.pop(name, None)
        if work is not None and work.slot is not None:
            self._manager.tables.release(work.slot)
            self._admit()

    def _fail_all(self, text: str) -> None:
        for work in [*self._waiting, *self._running.values()]:
            if not work.answered:
                _log.error("request %s ended: %s", work.client_id, text)
                self._fail(work, text)
        self._waiting.clear()
        self._running.clear()
