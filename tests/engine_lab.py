"""An engine of the tiny model, and how tests ask it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internvideo_server.engine import Engine, Output, load_engine, parse_request
from internvideo_server.export.language_model import export_llm

SLOTS, MAX_SEQ = 4, 384
END = 10**6  # no token: answers run to their length
PATIENCE_S = 60.0


class Answer:
    """A sink that collects one request's responses; ``on_send`` may look at each."""

    def __init__(self, on_send: Callable[[Answer], None] = lambda answer: None) -> None:
        self.ids: list[int] = []
        self.outputs: list[Output] = []
        self.error: str | None = None
        self.cancelled = False
        self.ends = 0
        self.first, self.done = threading.Event(), threading.Event()
        self._on_send = on_send

    def send(self, output: Output) -> None:
        self.outputs.append(output)
        self.ids += output.output_ids.tolist()
        self.first.set()
        self._on_send(self)
        if output.final:
            self.ends += 1
            self.done.set()

    def fail(self, text: str, *, cancelled: bool = False) -> None:
        self.error = text
        self.ends += 1
        self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> list[int]:
        assert self.done.wait(PATIENCE_S), "no end"
        assert self.error is None, self.error
        return self.ids


def export(checkpoint: Path, out: Path, **limits: Any) -> Path:
    export_llm(checkpoint, out, **{"max_batch_size": SLOTS, "max_frames": 4, "max_seq_len": MAX_SEQ, **limits})
    return out


def start(engine_dir: Path, device: str, *, reuse: bool = True, max_queue_size: int = 0) -> Engine:
    return load_engine(
        engine_dir, torch.device(device), max_queue_size=max_queue_size, reuse=reuse, cancellation_check_period=0.02
    )


def ask(
    engine: Engine,
    ids: list[int],
    count: int = 12,
    *,
    table: torch.Tensor | None = None,
    answer: Answer | None = None,
    **more: Any,
) -> Answer:
    """Submit a prompt; values in ``more`` are tensors or scalars by their input's name."""
    answer, name = answer or Answer(), str(more.pop("name", ""))
    tensors = {
        "input_ids": np.array([ids], np.int32),
        "request_output_len": np.array([[count]], np.int32),
        "streaming": np.array([[True]]),
        **{key: value if isinstance(value, np.ndarray) else np.array([[value]]) for key, value in more.items()},
    }
    request = parse_request(tensors, table, engine.limits, exclude_input=True, reuse=True)
    engine.submit(name, request, answer)
    return answer


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 1000, length).tolist()


def with_video(engine: Engine, seed: int, rows: int = 16, length: int = 80) -> dict[str, Any]:
    """A prompt whose middle is a table of random rows."""
    vocab = engine.limits.vocab_size
    ids = [*prompt(seed, 20), *range(vocab, vocab + rows), *prompt(seed + 1, length - rows - 20)]
    extra = np.where(np.array([ids]) >= vocab, seed + 1, 0).astype(np.uint64)
    table = torch.randn(1, rows, engine.limits.hidden_size, generator=torch.Generator().manual_seed(seed))
    return {"ids": ids, "table": table, "prompt_table_extra_ids": extra}


def colliding(engine: Engine, seed: int) -> list[dict[str, Any]]:
    """Five requests alike but for their videos, whose keys of four words are the same but for one word at most."""
    request = with_video(engine, seed, rows=64, length=120)
    virtual = request["prompt_table_extra_ids"] > 0
    requests = []
    for place in (None, 0, 1, 2, 3):
        words = [11 + seed, 12, 13, 14]
        if place is not None:
            words[place] += 1
        extra = np.zeros(virtual.shape, np.uint64)
        extra[virtual] = words * 16
        table = request["table"] if place is None else request["table"].roll(place + 1, 1)
        requests.append({**request, "table": table, "prompt_table_extra_ids": extra})
    return requests


def idle(engine: Engine) -> bool:
    """Whether nothing is left of any request; changes only when the generation thread has dropped the last."""
    with engine._lock:
        return not (engine._running or engine._works) and len(engine._batch.tables._free) == SLOTS


def wait_until_idle(engine: Engine) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not idle(engine) and time.monotonic() < deadline:
        ask(engine, [1], 1).wait()  # a whole turn of the generation loop
    assert idle(engine)


def guided(kind: str, text: str) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "guided_decoding_guide_type": np.array([[kind.encode()]], object),
        "guided_decoding_guide": np.array([[text.encode()]], object),
    }


class Several(Answer):
    """Of a request with several answers: the tokens of each."""

    @property
    def sequences(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for output in self.outputs:
            assert output.sequence_index is not None
            found.setdefault(output.sequence_index, []).extend(output.output_ids.tolist())
        return found
