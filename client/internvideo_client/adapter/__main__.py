"""``python -m internvideo_client.adapter``: the adapter as a process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from .._protocol import MAX_BODY_BYTES
from . import AdapterSettings, create_app


def main(
    triton: Annotated[str, typer.Option(help="HOST:PORT of Triton's gRPC endpoint")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of the engine directory")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 9997,
    max_body_bytes: Annotated[int, typer.Option(help="largest request body")] = MAX_BODY_BYTES,
    request_timeout: Annotated[float, typer.Option(help="longest time for a whole request, seconds")] = 300,
    first_token_timeout: Annotated[
        float | None, typer.Option(help="longest silence before the first response, seconds; none: as the whole request")
    ] = None,
    inactivity_timeout: Annotated[float, typer.Option(help="longest silence between responses, seconds")] = 60,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Serve the OpenAI API in front of a running Triton."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = AdapterSettings(
        triton=triton,
        tokenizer=tokenizer,
        max_body_bytes=max_body_bytes,
        request_timeout_s=request_timeout,
        first_token_timeout_s=first_token_timeout,
        inactivity_timeout_s=inactivity_timeout,
    )
    # Streams that are open at the end get their cancel, and their work its stop, within these seconds.
    uvicorn.run(create_app(settings), host=host, port=port, log_config=None, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    typer.run(main)
