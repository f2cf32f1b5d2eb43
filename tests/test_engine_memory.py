"""The embedded engine on a device that has no memory left for a moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from internvideo_server.engine import Engine, load_engine
from internvideo_server.engine._attention import DecodeStep, PackedStep
from tests.engine_lab import SLOTS, ask, prompt, start, with_video


def scarce(patch: pytest.MonkeyPatch, prompt_tokens: int) -> list[int]:
    """Attention that has room for one request, and of a prompt for so many tokens; returns the sizes that had none."""
    refused: list[int] = []
    for step, most in ((PackedStep, prompt_tokens), (DecodeStep, 1)):

        def attend(self: Any, layer: int, query: torch.Tensor, *rest: Any, most: int = most, real: Any = step.attend) -> Any:
            if len(query) > most:
                refused.append(len(query))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, layer, query, *rest)

        patch.setattr(step, "attend", attend)
    return refused


def test_a_step_without_memory_is_computed_in_pieces_and_answers_the_same(
    engine: Engine, engine_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [{"ids": prompt(seed, 150 + 40 * seed), "count": 20} for seed in range(SLOTS - 1)]
    requests.append(with_video(engine, 5, length=120))
    later = {**requests[0], "ids": requests[0]["ids"] + prompt(90, 130)}  # its beginning is in the cache
    expected = [ask(engine, **request).wait() for request in [*requests, later]]
    poor = start(engine_dir, device)
    try:
        refused = scarce(monkeypatch, prompt_tokens=64)
        answers = [ask(poor, **request) for request in requests]
        assert [answer.wait() for answer in answers] + [ask(poor, **later).wait()] == expected
    finally:
        poor.close()
    assert max(refused) > 2 * 64 and 1 < min(refused) <= SLOTS  # of prompts, and of answers under way


def test_where_even_a_piece_has_no_memory_clients_are_told_to_come_again_and_the_process_may_end(
    engine_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = threading.Event()
    options = {"max_queue_size": 0, "reuse": True, "cancellation_check_period": 0.02}
    engine = load_engine(engine_dir, torch.device(device), **options, on_death=died.set)
    try:
        scarce(monkeypatch, prompt_tokens=0)
        answers = [ask(engine, prompt(seed, 100)) for seed in range(2)]
        assert died.wait(60)
        assert all(answer.done.is_set() and str(answer.error).startswith("[UNAVAILABLE]") for answer in answers)
    finally:
        engine.close()
