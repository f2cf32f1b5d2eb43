"""The app: routes, who may ask, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from internvideo_client.engine_files import load_engine, load_tokenizer
from internvideo_client.page import page_routes
from internvideo_client.run_state import RunState
from internvideo_client.state import StateStore
from internvideo_client.triton import TritonChatClient
from internvideo_server.settings import AdapterSettings

from ._context import VERSION, Context
from ._errors_http import add_error_handlers
from .http import Access, KeyRing, RequestIds, Traces
from .openapi import describe, document_of_routes
from .routes import Readiness, add_routes


def create_app(settings: AdapterSettings) -> FastAPI:
    """The ASGI app of the adapter.

    Args:
        settings: See `AdapterSettings`; the engine's files and the API keys are read here.

    Raises:
        OSError, ValueError: The engine's files, the keys or the state's folder cannot be read.
    """
    tokenizer, engine = load_tokenizer(settings.tokenizer), load_engine(settings.tokenizer)
    keys = KeyRing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = StateStore(settings)
        background = [asyncio.create_task(store.keep_clean())]
        try:
            async with TritonChatClient(
                settings.triton,
                request_timeout_s=settings.request_timeout,
                first_token_timeout_s=settings.first_token_timeout,
                inactivity_timeout_s=settings.inactivity_timeout,
                # Of the same run: preprocessing opens the files there.
                media_folder=None if settings.run_state is None else store.files.folder,
            ) as client:
                app.state.context = Context(settings, tokenizer, engine, client, store)
                app.state.readiness = Readiness()
                if settings.run_state is not None:
                    client.run_state = RunState(settings.run_state, client.on_deaths)
                    background.append(asyncio.create_task(client.run_state.follow()))
                yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            store.close()
            keys.close()

    app = _with_routes(lifespan)
    app.state.keys = keys
    describe(app, keys.any())
    if settings.page:
        app.router.routes.extend(page_routes(settings.examples))
    add_error_handlers(app)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", "Server-Timing"],
        )
    app.add_middleware(
        Access,
        keys=keys,
        metrics_key=None if settings.metrics_key is None else settings.metrics_key.get_secret_value(),
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
    )
    if settings.otlp_endpoint is not None:
        app.add_middleware(Traces, endpoint=settings.otlp_endpoint)
    app.add_middleware(RequestIds)
    return app


def openapi_document() -> dict[str, Any]:
    """``/openapi.json`` of a server with API keys, without a server."""
    return document_of_routes(_with_routes(None), keys=True)


def _with_routes(lifespan: Any) -> FastAPI:
    # Swagger's page loads its scripts from elsewhere; the schema is here.
    # FastAPI's own telemetry looks for providers at every request, and this app has what it wants to tell.
    own = TelemetryConfig(tracing=False, metrics=False, logs=False)
    app = FastAPI(
        title="InternVideo2.5 on Triton", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, telemetry=own
    )
    add_routes(app)
    return app
