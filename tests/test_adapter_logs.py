"""The adapter's log as JSON, from the real process."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx2

from internvideo_client.adapter.http._logs import JsonFormatter
from tests.asking import until
from tests.fake_triton import FakeTriton, Step


def test_each_line_is_an_object_with_the_requests_id(fake: FakeTriton, url: str, tmp_path: Path, free_ports: list[int]) -> None:
    """The adapter as `serve` starts it, before the same Triton as `url`'s."""
    fake.script = [Step([5, 6])]
    command = [sys.executable, "-m", "internvideo_client.adapter", "--triton", f"127.0.0.1:{fake.port}"]
    command += ["--tokenizer", str(tmp_path / "tokenizer.json"), "--port", str(free_ports[0]), "--log-format", "json"]
    base = f"http://127.0.0.1:{free_ports[0]}"
    body = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "hello"}]}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as adapter:
        assert adapter.stderr is not None
        try:
            until(lambda: _alive(base) or adapter.poll() is not None, "the adapter did not start")
            answer = httpx2.post(f"{base}/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-1"}, trust_env=False)
            assert answer.status_code == 200, answer.text
        finally:
            adapter.terminate()
            lines = [json.loads(line) for line in adapter.stderr]
    (told,) = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert (told["request_id"], told["method"], told["status"], told["level"]) == ("mine-1", "POST", 200, "info")
    assert all({"time", "level", "logger", "request_id", "message"} <= line.keys() for line in lines)


def test_a_fault_is_one_line() -> None:
    try:
        raise ValueError("视频\n\x1b[31m")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "broken: %s", ("x",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line and "\x1b" not in line
    assert json.loads(line)["message"] == "broken: x"
    assert "ValueError: 视频" in json.loads(line)["exception"]


def test_the_format_is_one_that_is_known() -> None:
    command = [sys.executable, "-m", "internvideo_client.adapter", "--triton", "a:1", "--tokenizer", "t", "--log-format", "xml"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--log-format" in refused.stderr


def _alive(base: str) -> bool:
    try:
        return httpx2.get(f"{base}/ping", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
