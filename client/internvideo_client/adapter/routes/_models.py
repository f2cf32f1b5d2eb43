"""``/v1/models``, ``/version``, health, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from internvideo_client.adapter._context import VERSION, Context, context_of
from internvideo_client.adapter._metrics import Metrics
from internvideo_client.triton import TritonChatClient

_READINESS_VALID_S = 2.0


async def list_models(request: Request) -> Response:
    """The one model, by each of its names."""
    context = context_of(request)
    return JSONResponse({"object": "list", "data": [_card(context, name) for name in context.settings.served_model_name]})


async def get_model(request: Request) -> Response:
    """The model by one of its names, the upstream one included."""
    context, name = context_of(request), request.path_params["model_id"]
    context.check_model(name)
    return JSONResponse(_card(context, name))


def _card(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "OpenGVLab",
        "root": context.model_names[0],
        "max_model_len": context.engine.context_length,
        "max_frames": context.max_frames,
    }


async def version(request: Request) -> Response:
    """Of this server."""
    return JSONResponse({"version": VERSION, "engine": context_of(request).engine.name})


async def live(request: Request) -> Response:
    """The adapter answers. Not where the process should be started again: the launcher has given up."""
    run = context_of(request).client.run_state
    if run is not None and run.status == "failed":
        run.check_ready()
    return JSONResponse({"status": "live"})


class Readiness:
    """Asks Triton at most every two seconds, however many ask here."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._until = 0.0

    async def check(self, client: TritonChatClient) -> None:
        """Nothing, where all models answer.

        Raises:
            ApiError: 503 that names what does not.
        """
        run = client.run_state
        if run is not None:  # asked by the launcher at the start, told of each death since: a look is not traffic for Triton
            run.check_ready()
            if run.status == "serving":
                return
        async with self._lock:
            if time.monotonic() > self._until:
                await client.check_ready()
                self._until = time.monotonic() + _READINESS_VALID_S


async def ready(request: Request) -> Response:
    """All models answer."""
    await request.app.state.readiness.check(context_of(request).client)
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Prometheus metrics of the adapter."""
    context = context_of(request)
    return Response(context.metrics.render(context.client.run_state), media_type=Metrics.content_type)
