"""When trying again makes sense: from the pace at which requests end."""

from __future__ import annotations

import pytest

from internvideo_client.adapter import _pace
from internvideo_client.adapter._pace import Pace


def test_a_slow_server_asks_for_patience_and_a_quick_one_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_pace.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.retry_after_s() == 1
    for _ in range(50):
        now[0] += 12.0
        pace.ended()
    assert pace.retry_after_s() == 12 and pace.retry_after_s(3) == 36 and pace.retry_after_s(100) == 60
    for _ in range(50):
        now[0] += 0.1
        pace.ended()
    assert pace.retry_after_s() == 1
