"""An engine that is alive but does nothing any more ends its process; one that is only slow does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_lab import PATIENCE_S

ENGINE = """
import sys, threading, time
from pathlib import Path
import torch
from internvideo_server.engine import Heartbeat, load_engine
from tests.engine_lab import ask, prompt

heartbeat = Heartbeat(patience_s=2.0)
engine = load_engine(
    Path(sys.argv[1]), torch.device("cpu"), max_queue_size=0, reuse=True, cancellation_check_period=0.02,
    report=lambda figures: heartbeat.beat(figures.beats if figures.active else None),
)
assert len(ask(engine, prompt(1, 10), 5).wait()) == 5
"""
STUCK = {
    "a lock that nobody gives back": "engine._lock.acquire()",
    "a step that does not end": """
engine._batch._model.model.forward = lambda *_, **__: time.sleep(1e6)
ask(engine, prompt(2, 10), 5)
""",
    "a native call that keeps the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(1000000)",
}
SLOW = """
attend = engine._batch._model.model.layers[0].self_attn.forward
def slow(*args, **more):
    time.sleep(0.5)
    return attend(*args, **more)
engine._batch._model.model.layers[0].self_attn.forward = slow
assert len(ask(engine, prompt(3, 10), 8).wait()) == 8  # 4 s
time.sleep(3.0)  # nothing to do
engine.close()
heartbeat.close()
time.sleep(3.0)
"""


def run(engine_dir: Path, then: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.')\n{ENGINE}\n{then}", str(engine_dir)]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=3 * PATIENCE_S)


@pytest.mark.parametrize("stuck", STUCK)
def test_a_stuck_engine_ends_its_process_and_leaves_its_stacks(engine_dir: Path, stuck: str) -> None:
    ended = run(engine_dir, f"{STUCK[stuck]}\ntime.sleep(1e6)")
    assert ended.returncode == 1
    assert "Timeout (0:00:02)!" in ended.stderr
    assert "_answer_all" in ended.stderr


def test_a_slow_engine_and_one_with_nothing_to_do_live_on(engine_dir: Path) -> None:
    ended = run(engine_dir, SLOW)
    assert ended.returncode == 0, ended.stderr
