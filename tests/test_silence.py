"""Tests of a server that has gone silent do not each wait for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.contract.engine_client import EngineClient
from tests.silence import Silence


def client_of(address: str) -> EngineClient:
    client = EngineClient.__new__(EngineClient)  # the real one asks for the model's configuration
    client.url = address
    return client


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_tests_of_a_server_that_went_silent_fail_at_once(deaf: str) -> None:
    silence = Silence(patience_s=0.5)
    silence.refuse({"engine": client_of(deaf)})  # nothing is known yet
    silence.look({"engine": client_of(deaf)})
    with pytest.raises(pytest.fail.Exception, match="answered nothing"):
        silence.refuse({"engine": client_of(deaf)})


def test_an_error_is_an_answer(free_ports: list[int]) -> None:
    silence, nobody = Silence(), f"127.0.0.1:{free_ports[0]}"
    silence.look({"engine": client_of(nobody)})
    silence.refuse({"engine": client_of(nobody)})


def test_other_servers_are_not_held_responsible(deaf: str) -> None:
    silence = Silence(patience_s=0.5)
    silence.look({"engine": client_of(deaf)})
    silence.refuse({"engine": client_of("127.0.0.1:1"), "checkpoint": "a path"})
