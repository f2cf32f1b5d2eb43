"""The engine: requests wait here, enter the batch when there is room, and are answered from one thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from internvideo_server.errors import shortage
from internvideo_server.limits import EngineLimits

from ._generation import Generation, Output
from .batch import Batch, BatchOutput
from .grammar import GrammarCompiler, GrammarError
from .request import GenerationRequest, RefusedRequestError
from .sequence_state import SequenceState

_log = logging.getLogger(__name__)
_DEAD = "the engine's generation thread has ended; unload and load the model"
# As NVIDIA's executor puts it.
_NO_GUIDES = (
    "Encountered an error when fetching new request: Request is specified with GuidedDecodingParams, but GuidedDecoder is not "
    "setup. Please provide a valid GuidedDecodingConfig to setup GuidedDecoder."
)


@dataclass(frozen=True)
class EngineFigures:
    """How the engine stands.

    Attributes:
        active: Answers in the batch.
        waiting: Those that wait for a place in it.
        cache_used: Share of the KV cache in use, 0 to 1; None: not known.
        computed_tokens: Tokens that went through the model so far; what the KV cache had did not.
        beats: Grows while the batch computes.
    """

    active: int
    waiting: int
    cache_used: float | None
    computed_tokens: int
    beats: int


Report = Callable[[EngineFigures], None]


def nothing_reported(figures: EngineFigures) -> None:
    """A report that goes nowhere."""


def fault_text(error: Exception, text: str) -> str:
    """What a client is told: ``text``, or where the host or the GPU has too little of something, that."""
    short = shortage(error)
    return text if short is None else short.text


class Sink(Protocol):
    """Where a request's responses go. Called from the engine's own threads, one at a time."""

    def send(self, output: Output) -> None:
        """Send one response; ``output.final`` marks the last."""

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        """End the request with an error."""

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""


class _State(Enum):
    COMPILING = auto()  # its grammar
    HELD = auto()  # until the first of the request's answers has left the prompt in the cache
    WAITING = auto()  # for a place in the batch
    RUNNING = auto()
    ENDED = auto()  # nothing more is to be sent; the batch may still hold it


@dataclass(eq=False)
class _Answer:
    """One of a request's answers."""

    work: _Work
    generation: Generation
    state: _State
    name: str = ""  # the batch's


@dataclass(eq=False)
class _Work:
    """A request under way."""

    client_id: str  # the Triton request id, for `stop`
    sink: Sink
    answers: list[_Answer] = field(default_factory=list)

    @property
    def unfinished(self) -> list[_Answer]:
        return [answer for answer in self.answers if answer.state is not _State.ENDED]

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return all(answer.state in (_State.COMPILING, _State.HELD, _State.WAITING) for answer in self.answers)


class Engine:
    """Runs requests in a batch and answers them as NVIDIA's ``tensorrtllm`` backend does.

    Args:
        make_batch: Makes the batch; it is given what to call when a cancelled answer has left it.
        limits: What requests may ask for.
        grammars: Compiles guides; None: requests with a guide are refused.
        max_queue_size: Requests that may wait for a place in the batch; 0 = no limit.
        reuse: The batch shares the KV cache of equal prompts' beginnings.
        cancellation_check_period: Seconds between looks at each client's cancellation.
        report: Called at the same times.
        on_death: Called when the batch has died, after its requests have failed: the engine does no more.
    """

    def __init__(
        self,
        make_batch: Callable[[Callable[[str], None]], Batch],
        limits: EngineLimits,
        grammars: GrammarCompiler | None,
        *,
        max_queue_size: int,
        reuse: bool,
        cancellation_check_period: float,
        report: Report = nothing_reported,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_death = on_death
        self.limits = limits
        self._max_queue_size = max_queue_size
        self._reuse = reuse
        self._period = cancellation_check_period
        self._report = report
        self._lock = threading.Lock()  # held to change what follows
        self._works: list[_Work] = []  # those with something to be sent, oldest first
        self._running: dict[str, _Answer] = {}  # by name; cancelled ones too until the batch has dropped them
        self._ids = itertools.count()
        self._closing = threading.Event()
        self._grammars = grammars
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="engine-grammar")
        self._batch = make_batch(self._leave_batch)
        self._thread = threading.Thread(target=self._answer_all, name="engine-answers", daemon=True)
        self._thread.start()

    def submit(self, client_id: str, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request.

        Raises:
            RefusedRequestError: The queue is full, the engine has died, or it follows no guides.
        """
        if request.guide is not None and self._grammars is None:
            raise RefusedRequestError(_NO_GUIDES)
        new = _Work(client_id, sink)
        for index in range(request.num_sequences):
            state = SequenceState(replace(request.sampling, seed=(request.sampling.seed + index) % 2**64))
            first = index == 0 or not self._reuse
            new.answers.append(_Answer(new, Generation(request, state, index), _State.WAITING if first else _State.HELD))
        with self._lock:
            self._refuse_if_dead()
            if self._max_queue_size and sum(work.waits for work in self._works) >= self._max_queue_size:
                raise RefusedRequestError(
                    f"Maximum queue size of {self._max_queue_size} has been reached, please try again later"
                )
            self._works.append(new)
            if request.guide is not None and self._grammars is not None:
                for answer in new.answers:
                    answer.state = _State.COMPILING
                self._compiling.submit(self._compile, self._grammars, new, request)
            self._admit()

    def stop(self, client_id: str) -> None:
        """End the request with this id; it gets its final response. An unknown id is not an error, as in NVIDIA's backend.

        Raises:
            RefusedRequestError: The engine has died: a ``stop`` is also how a client finds out whether it lives.
        """
        with self._lock:
            self._refuse_if_dead()
            for work in [work for work in self._works if work.client_id == client_id]:
                for answer in work.unfinished:
                    self._send(answer, answer.generation.output(final=True))
                    self._end(answer)

    def close(self) -> None:
        """End everything; requests under way fail."""
        self._closing.set()
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._batch.close()
        self._thread.join()
        with self._lock:
            self._fail_all("the engine was unloaded")

    def _refuse_if_dead(self) -> None:
        if self._closing.is_set() or not self._batch.alive:
            raise RefusedRequestError(_DEAD)

    def _has_room(self) -> bool:
        return len(self._running) < self.limits.max_batch_size

    def _compile(self, compiler: GrammarCompiler, work: _Work, request: GenerationRequest) -> None:
        """In a thread of its own: what a guide costs must not hold up the others' requests."""
        grammars, fault = [], ""
        try:
            if request.guide is not None and work.unfinished:
                grammars = [compiler.compile(request.guide, request.sampling.end_id) for _ in work.answers]
        except GrammarError as error:
            fault = str(error)
        except Exception as error:
            _log.exception("the guide of request %s could not be compiled", work.client_id)
            fault = f"the guide could not be compiled: {type(error).__name__}"
        with self._lock:
            if fault:
                self._fail(work, fault)
            for index, (answer, grammar) in enumerate(zip(work.answers, grammars, strict=False)):
                answer.generation.state.grammar = grammar
                if answer.state is _State.COMPILING:
                    answer.state = _State.HELD if index and self._reuse else _State.WAITING
            if not self._closing.is_set():
                self._admit()

    def _admit(self) -> None:
        waiting = [answer for work in self._works for answer in work.answers if answer.state is _State.WAITING]
        for answer in waiting:
            if not self._has_room():
                return
            if answer.state is not _State.WAITING:  # its request has failed meanwhile
                continue
            name = str(next(self._ids))
            try:
                self._batch.add(name, answer.generation.request, answer.generation.state)
            except ValueError as error:
                self._fail(answer.work, str(error))
                continue
            except Exception as error:  # no memory for its rows, say: this request's fault alone
                _log.exception("request %s could not enter the batch", answer.work.client_id)
                self._fail(answer.work, fault_text(error, f"the request could not enter the batch: {type(error).__name__}"))
                continue
            answer.name, answer.state = name, _State.RUNNING
            self._running[name] = answer

    def _answer_all(self) -> None:
        next_check = 0.0
        while not self._closing.is_set():
            dead = not self._batch.alive  # looked at first: what it says last is still there
            result = self._batch.next_output(timeout=self._period)
            with self._lock:
                if result is not None:
                    self._advance(result)
                if (now := time.monotonic()) >= next_check:
                    next_check = now + self._period
                    self._end_cancelled()
                    self._tell()
                if dead and result is None:
                    self._fail_all(_DEAD)
                    break
        if not self._closing.is_set():
            self._on_death()

    def _tell(self) -> None:
        waiting = sum(len(work.unfinished) for work in self._works) - len(self._running)
        try:
            batch, active = self._batch, len(self._running)
            self._report(EngineFigures(active, max(0, waiting), batch.cache_used, batch.computed_tokens, batch.beats))
        except Exception:  # a figure must not end the thread that answers all
            _log.exception("the number of requests could not be reported")

    def _advance(self, result: BatchOutput) -> None:
        answer = self._running.get(result.name)
        if answer is None:
            return
        if answer.state is not _State.ENDED:
            if fault := answer.generation.state.failure:
                self._fail(answer.work, fault)
            elif result.error:
                text = f"Executor failed process requestId {result.name} due to the following error: {result.error}"
                self._fail(answer.work, fault_text(RuntimeError(result.error), text))
            else:
                self._send(answer, answer.generation.advance(result.tokens, finished=result.finished))
                if self._release_held(answer.work):
                    self._admit()
        if result.finished:
            self._remove(result.name)
        elif answer.state is _State.ENDED:  # by a stop word, `stop` or its client: the batch does not know yet
            self._batch.cancel(result.name)

    def _release_held(self, work: _Work) -> bool:
        """The prompt is in the cache: the request's other answers may follow."""
        held = [answer for answer in work.answers if answer.state is _State.HELD]
        for answer in held:
            answer.state = _State.WAITING
        return bool(held)

    def _send(self, answer: _Answer, output: Output | None) -> None:
        if output is None:
            return
        work = answer.work
        if output.final:
            answer.state = _State.ENDED
            if work.unfinished:  # the last of the request's answers ends it
                output = replace(output, final=False)
            else:
                self._works.remove(work)
        try:
            work.sink.send(output)
        except Exception:  # one client's trouble must not end the thread that answers all
            _log.exception("a response of request %s could not be sent", work.client_id)
            if not output.final:
                self._fail(work, "a response could not be sent")

    def _fail(self, work: _Work, text: str, *, cancelled: bool = False) -> None:
        """End a request with an error, where it has not ended."""
        if not (unfinished := work.unfinished):
            return
        for answer in unfinished:
            self._end(answer)
        self._works.remove(work)
        with contextlib.suppress(Exception):
            work.sink.fail(text, cancelled=cancelled)

    def _end(self, answer: _Answer) -> None:
        """Nothing more is to be sent for it."""
        if answer.name in self._running:
            self._batch.cancel(answer.name)
        answer.state = _State.ENDED

    def _end_cancelled(self) -> None:
        for work in list(self._works):
            if work.sink.is_cancelled():
                self._fail(work, "the request was cancelled by its client", cancelled=True)

    def _leave_batch(self, name: str) -> None:
        with self._lock:
            self._remove(name)

    def _remove(self, name: str) -> None:
        answer = self._running.pop(name, None)
        if answer is not None:
            self._release_held(answer.work)
            self._admit()

    def _fail_all(self, text: str) -> None:
        for work in list(self._works):
            _log.error("request %s ended: %s", work.client_id, text)
            self._fail(work, text)
        self._running.clear()
