"""A server that answers nothing any more costs its patience once: later tests of the same server fail at once."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from internvideo_server.launch import RunningServer
from tests.contract.engine_client import PATIENCE_S, REQUIRED_OUTPUTS, Call, EngineClient, RefusedError


class Silence:
    """What is known of the servers that several tests share, by the address of their gRPC endpoint."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._silent: set[str] = set()

    def look(self, fixtures: Mapping[str, object]) -> None:
        """After a failed test: ask each server that it used whether it still answers."""
        self._silent |= {address for address in set(_addresses(fixtures)) - self._silent if not self._answers(address)}

    def refuse(self, fixtures: Mapping[str, object]) -> None:
        """Before a test: fail it where it uses a server that is silent."""
        for address in _addresses(fixtures):
            if address in self._silent:
                pytest.fail(f"the server at {address} answered nothing for {self._patience_s:g} s after an earlier test", False)

    def _answers(self, address: str) -> bool:
        """Whether the engine says anything to a question for one token; an error is an answer."""
        one = np.array([[1]], np.int32)
        tensors = {"input_ids": one, "input_lengths": one, "request_output_len": one, "streaming": np.array([[True]])}
        try:
            with Call(address, {**tensors}, REQUIRED_OUTPUTS, uuid.uuid4().hex) as call:
                call.next(self._patience_s)
        except queue.Empty:
            return False
        except (RefusedError, InferenceServerException):
            return True
        return True


def _addresses(fixtures: Mapping[str, object]) -> Iterator[str]:
    for value in fixtures.values():
        if isinstance(value, RunningServer):
            yield value.grpc_url
        elif isinstance(value, EngineClient):
            yield value.url
