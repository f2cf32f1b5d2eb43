"""OpenTelemetry: a trace of each request, from HTTP through each model. Off unless ``--otlp-endpoint`` says where it goes.

The models write no spans: what they did and when comes with the request's report (CLOCK_MONOTONIC, one clock of the host), and
becomes spans here, so that nothing but the adapter knows OpenTelemetry.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._request_id import current_request_id

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_NS = 1_000_000_000
_EXPORT_S = 5  # with its retries: a collector that is away must not hold up the end
_TRACED = "/v1/"
_STAGES = ("preprocessing", "vit")
_tracer: Tracer | None = None


class Traces:
    """Middleware: a span for each request to the API, in the trace that ``traceparent`` names or a new one.

    Args:
        app: The app.
        endpoint: Base URL of an OTLP receiver over HTTP (``http://127.0.0.1:4318``).

    Raises:
        ValueError: The extra is not installed.
    """

    def __init__(self, app: ASGIApp, endpoint: str) -> None:
        global _tracer
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise ValueError(f"--otlp-endpoint needs {error.name}: pip install '.[otel]'") from error
        self._app = app
        # $OTEL_SERVICE_NAME and $OTEL_RESOURCE_ATTRIBUTES count; the process's end flushes what is left.
        provider = TracerProvider(resource=Resource.create({"service.name": "internvideo"}))
        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_S))
        )
        _tracer = self._tracer = provider.get_tracer("internvideo")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        # Ids of files and responses are no part of a name: there would be a name for each.
        name = f"{scope['method']} {'/'.join(scope['path'].split('/')[:4])}"
        about = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "internvideo.request_id": current_request_id(),
        }
        with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER, attributes=about) as span:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, send_noted)


def tracing() -> bool:
    """Whether traces are kept."""
    return _tracer is not None


def trace_models(
    report: Mapping[str, Any], request_id: str, first_token_at: float | None, tokens: tuple[int, int], ended_at: float
) -> None:
    """Add a span for each model to the request's span.

    Args:
        report: As :meth:`TritonChatClient.report` gives it.
        request_id: Triton's.
        first_token_at, ended_at: Of the answer, seconds of ``time.monotonic()``.
        tokens: Of the prompt, and generated.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import get_current_span

    if not get_current_span().is_recording():
        return
    offset = time.time() - time.monotonic()

    def at(monotonic: float) -> int:
        return round((monotonic + offset) * _NS)

    begin = None
    for model in _STAGES:
        stage = report.get(model) or {}
        if not stage.get("ended_at"):
            continue
        about = {f"internvideo.{name}": value for name, value in stage.items() if not name.endswith("_at")}
        about["internvideo.triton_id"] = request_id
        if model == "preprocessing":
            about |= {
                f"internvideo.{name}": sum(medium[name] for medium in report.get("media", ()))
                for name in ("frames", "cached_frames")
            }
        _tracer.start_span(model, start_time=at(stage["began_at"]), attributes=about).end(at(stage["ended_at"]))
        begin = stage["ended_at"]
    if begin is None or first_token_at is None:
        return
    about = {"gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1], "internvideo.triton_id": request_id}
    span = _tracer.start_span("tensorrt_llm", start_time=at(begin), attributes=about)
    span.add_event("first token", timestamp=at(first_token_at))
    span.end(at(ended_at))
