"""OpenTelemetry: one trace from HTTP through each model, at a collector of the test's own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from internvideo_client.adapter import create_app
from internvideo_server.launch import LaunchError, RunningServer
from internvideo_server.launch import _checks as checks
from internvideo_server.settings import AdapterSettings, ServeSettings
from tests.asking import body, text_part, video_part
from tests.fake_triton import FakeTriton, Step, running
from tests.serving import served

collector_messages = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra [otel]: make setup"
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP.

    Attributes:
        url: Its base URL.
    """

    def __init__(self) -> None:
        spans: queue.SimpleQueue[Any] = queue.SimpleQueue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                for resource in collector_messages.ExportTraceServiceRequest.FromString(raw).resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            spans.put(span)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._spans = spans
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, count: int) -> dict[str, Any]:
        """Wait for so many spans; name -> span."""
        found = [self._spans.get(timeout=60) for _ in range(count)]
        assert self._spans.empty()
        return {span.name: span for span in found}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds
    collector = Collector()
    yield collector
    collector.close()


@contextmanager
def adapter_before(server: RunningServer, collector: Collector) -> Iterator[str]:
    """One more adapter before a real Triton, which sends its traces to the collector."""
    settings = AdapterSettings(
        triton=server.grpc_url, tokenizer=server.engine / "tokenizer.json", otlp_endpoint=collector.url, max_frames=128
    )
    with served(create_app(settings)) as base:
        yield base


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.mark.server
@pytest.mark.parametrize("streamed", [False, True])
def test_one_trace_goes_through_each_model(server: RunningServer, media_dir: Path, collector: Collector, streamed: bool) -> None:
    video = video_part(media_dir / "v4.mp4", num_frames=4 + 4 * streamed, start=0.7)  # frames that no other test has had decoded
    asked = body(video, text_part("What?"), max_tokens=4, stream=streamed)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    with adapter_before(server, collector) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        spans = collector.take(4)
    http = spans["POST /v1/chat/completions"]
    assert http.parent_span_id.hex() == PARENT
    assert attributes(http)["internvideo.request_id"] == "mine"
    assert attributes(http)["http.response.status_code"] == 200
    models = [spans[name] for name in ("preprocessing", "vit", "tensorrt_llm")]
    for span in models:
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id == http.span_id
        assert http.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= http.end_time_unix_nano
    assert [span.start_time_unix_nano for span in models] == sorted(span.start_time_unix_nano for span in models)
    assert attributes(models[0])["internvideo.frames"] == 4 + 4 * streamed
    assert attributes(models[0])["internvideo.decode_seconds"] > 0
    assert attributes(models[1])["internvideo.vision_frames"] == 4 + 4 * streamed
    assert attributes(models[2])["gen_ai.usage.output_tokens"] == 4
    assert [event.name for event in models[2].events] == ["first token"]


def test_a_refused_request_is_a_span_alone_and_health_is_none(fake: FakeTriton, tmp_path: Path, collector: Collector) -> None:
    fake.script = [Step(error="[UNAVAILABLE] not now")]
    with running(fake, tmp_path, otlp_endpoint=collector.url) as url:
        httpx2.get(f"{url}/health/live", trust_env=False)
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body(text_part("What?")), trust_env=False)
        assert answer.status_code == 503
        (span,) = collector.take(1).values()
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert not span.parent_span_id


def test_a_collector_that_is_away_costs_no_answer(fake: FakeTriton, tmp_path: Path) -> None:
    fake.script = [Step([5, 6])]
    with running(fake, tmp_path, otlp_endpoint="http://127.0.0.1:9") as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body(text_part("What?")), trust_env=False)
    assert answer.status_code == 200


def test_serve_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_has_opentelemetry", lambda: False)
    with pytest.raises(LaunchError, match=r"pip install '\.\[otel\]'"):
        checks.check_settings(ServeSettings(otlp_endpoint="http://127.0.0.1:4318"))
