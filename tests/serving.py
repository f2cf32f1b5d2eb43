"""What tests serve with: an app in a thread of this process, certificates."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme
import uvicorn


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An ASGI app on a port of its own; gives its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # serve() would take the process's signal handlers
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def certificate_files(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """Of a server with these names: its chain, its key, and the authority that signed it."""
    authority = trustme.CA()
    certificate = authority.issue_cert(*names)
    chain, key, ca = folder / "chain.pem", folder / "key.pem", folder / "ca.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(ca))
    return chain, key, ca
