"""Cancelling and `stop`, and more requests than the engine runs at once."""

from __future__ import annotations

import contextlib
import time
import uuid

import pytest

from tests.contract.engine_client import REQUIRED_OUTPUTS, Call, EngineClient, RefusedError

pytestmark = pytest.mark.server

SOON_S = 20.0  # generous for a check period of 100 ms: the machine may be busy


def endless(engine: EngineClient, **more: object) -> Call:
    """A request that runs to the end of the context: far longer than a test waits."""
    return engine.start(engine.prompt(10), 10**9, **more)


def ends_soon(call: Call) -> list[int]:
    """Read to the final response, which must come soon; returns the tokens on the way."""
    deadline, tokens = time.monotonic() + SOON_S, []
    while True:
        response = call.next(timeout=max(deadline - time.monotonic(), 0.01))
        tokens += response.tokens
        if response.final:
            return tokens


def test_stop_ends_a_running_stream(engine: EngineClient) -> None:
    with endless(engine) as call:
        call.next()
        answer = engine.stop(call.request_id)
        assert [response.tensors for response in answer.responses] == [{}]  # an empty final response
        assert len(ends_soon(call)) < engine.limits.max_seq_len - 20


def test_stop_ends_a_request_that_does_not_stream(engine: EngineClient) -> None:
    with endless(engine, streaming=False) as call:
        assert len(engine.ask(engine.prompt(5), 3).tokens) == 3  # by now the other is at work
        engine.stop(call.request_id)
        ends_soon(call)


def test_stop_ends_a_waiting_request(engine: EngineClient) -> None:
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(endless(engine)) for _ in range(engine.batch)]
        for call in running:
            call.next()
        waiting = stack.enter_context(endless(engine))
        engine.stop(waiting.request_id)
        assert ends_soon(waiting) == []


def test_stop_for_an_unknown_id_is_no_error(engine: EngineClient) -> None:
    assert engine.stop(f"nobody-{uuid.uuid4().hex}").responses[-1].final


def test_stop_twice_is_no_error(engine: EngineClient) -> None:
    with endless(engine) as call:
        call.next()
        engine.stop(call.request_id)
        engine.stop(call.request_id)
        ends_soon(call)
    engine.stop(call.request_id)


def test_stop_without_an_id_is_refused(engine: EngineClient) -> None:
    with pytest.raises(RefusedError, match="Trying to stop a request but request ID is not provided"):
        engine.stop("")


def test_stop_ends_only_its_request(engine: EngineClient) -> None:
    with engine.start(engine.prompt(10), 60) as kept, endless(engine) as ended:
        ended.next()
        engine.stop(ended.request_id)
        ends_soon(ended)
        assert len(kept.rest().tokens) == 60


def test_a_cancelled_call_makes_room(engine: EngineClient) -> None:
    """The batch is full of endless requests: only their end lets another one in."""
    calls = [endless(engine) for _ in range(engine.batch)]
    with engine.start(engine.prompt(10), 5) as waiting:
        for call in calls:
            call.next()
        for call in calls:
            call.cancel()
        assert len(ends_soon(waiting)) == 5


def test_more_requests_than_the_batch_holds_all_answer(engine: EngineClient) -> None:
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(engine.start(engine.prompt(10), 5 + number)) for number in range(3 * engine.batch)]
        assert [len(call.rest().tokens) for call in calls] == [5 + number for number in range(3 * engine.batch)]


def test_answers_are_the_same_alone_and_among_others(engine: EngineClient) -> None:
    prompts = [engine.prompt(20 + 10 * number) for number in range(min(8, 2 * engine.batch))]
    alone = [engine.ask(prompt, 10).tokens for prompt in prompts]
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(engine.start(prompt, 10)) for prompt in prompts]
        together = [call.rest().tokens for call in calls]
    if engine.exact:
        assert together == alone
    else:  # in 16 bits a tie may fall either way, and all after it is another text
        assert [tokens[0] for tokens in together] == [tokens[0] for tokens in alone]


def test_streams_run_side_by_side(engine: EngineClient) -> None:
    """A later request answers while an earlier one still runs: in-flight batching."""
    with endless(engine, outputs=REQUIRED_OUTPUTS) as running:
        running.next()
        assert len(engine.ask(engine.prompt(10), 5).tokens) == 5
        assert not running.next().final
