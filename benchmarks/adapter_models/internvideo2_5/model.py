"""Answers every question at once, and then each answer under way with a token in every step, as an engine does."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

FIRST_ID, WORDS = 3, 100  # of the benchmark's tokenizer
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """The stand-in."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the steps."""
        self._step_s = 0.025
        self._running: list[tuple[Any, int, int]] = []  # sender, tokens sent, tokens asked for
        self._new: list[tuple[Any, int, int]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._steps)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Give the first token; the others come in steps."""
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "request_output_len").as_numpy().reshape(-1)[0])
            if (entry := _one_token((request.get_response_sender(), 0, count))) is not None:
                self._new.append(entry)

    def finalize(self) -> None:
        """End the steps."""
        self._stopping.set()
        self._thread.join()

    def _steps(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            due = max(due + self._step_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            self._new, new = [], self._new
            self._running = [entry for entry in map(_one_token, self._running + new) if entry is not None]


def _one_token(entry: tuple[Any, int, int]) -> tuple[Any, int, int] | None:
    sender, number, count = entry
    values = {"output_ids": [[[FIRST_ID + number % WORDS]]], "sequence_length": [[1]], "num_input_tokens": [[10]]}
    tensors = [pb_utils.Tensor(name, np.array(value, np.int32)) for name, value in values.items()]
    last = number + 1 == count
    sender.send(pb_utils.InferenceResponse(tensors), flags=_FINAL if last else 0)
    return None if last else (sender, number + 1, count)
