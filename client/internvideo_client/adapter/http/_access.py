"""Who may ask: host names, origins of browsers, API keys, and each key's share."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internvideo_client.errors import ApiError

from ._keys import KeyRing, Quota

#: Without a key: that the server lives, and what a page loads before somebody typed one.
_OPEN_PATHS = ("/health", "/ping", "/page/", "/docs/")
_OPEN_EXACTLY = ("/", "/page", "/docs")
_READING = ("GET", "HEAD", "OPTIONS")


class Access:
    """Middleware that lets nobody in who may not.

    Args:
        app: Behind it.
        keys: The API keys; without any, everybody may ask.
        metrics_key: Of ``/metrics``; None: an API key.
        allowed_hosts: Names in the Host header; empty: all.
        allowed_origins: Of browsers' pages beside this server's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        metrics_key: str | None = None,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics_key = None if metrics_key is None else _digest(metrics_key.encode())
        self._hosts = {host.lower() for host in allowed_hosts}
        self._origins = set(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers, scope["path"])
            self._check_origin(scope, headers)
            quota = self._quota(scope, headers)
        except ApiError as error:
            await _refuse(error, send)
            return
        if quota is None:
            await self._app(scope, receive, send)
            return
        try:
            quota.begin()
        except ApiError as error:
            await _refuse(error, send)
            return
        try:
            await self._app({**scope, "internvideo.owner": quota.owner, "internvideo.quota": quota}, receive, send)
        finally:
            quota.end()

    def _check_host(self, headers: Headers, path: str) -> None:
        """Not of the health: it tells nothing that a stranger's page may not know, and balancers ask by address."""
        if len(headers.getlist("host")) > 1:
            raise ApiError(400, "there is more than one Host", None, "invalid_argument")
        if self._hosts and not path.startswith("/health") and _host_name(headers.get("host", "")) not in self._hosts:
            raise ApiError(403, "this server does not answer to that Host: see --allowed-hosts", None, "host_not_allowed")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A page of another site may send a form without asking first: its own name tells on it."""
        origin = headers.get("origin")
        if origin is None or scope["method"] in _READING or "*" in self._origins or origin in self._origins:
            return
        try:
            own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # "http://["
            own = False
        if not own:
            raise ApiError(403, "pages of that origin may not use this server: see --allowed-origins", None, "origin_not_allowed")

    def _quota(self, scope: Scope, headers: Headers) -> Quota | None:
        path = scope["path"]
        if not self._keys.any() and not (path == "/metrics" and self._metrics_key):
            return None
        if path in _OPEN_EXACTLY or path.startswith(_OPEN_PATHS) or scope["method"] == "OPTIONS":
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip().encode("utf-8", "surrogateescape")) if kind.lower() == "bearer" else b""
        if path == "/metrics":
            if self._metrics_key is not None and hmac.compare_digest(digest, self._metrics_key):
                return None
            if self._metrics_key is None and self._keys.quota(digest) is not None:
                return None
        elif (quota := self._keys.quota(digest)) is not None:
            return quota
        raise ApiError(
            401, "an API key is needed: send Authorization: Bearer KEY with one that this server knows", None, "invalid_api_key"
        )


def loopback_hosts(host: str) -> tuple[str, ...]:
    """The names by which a server that listens on the loopback is called; of another address: none, all are allowed."""
    return ("localhost", "127.0.0.1", "::1", host.lower()) if host in ("localhost", "::1") or host.startswith("127.") else ()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host_name(host: str) -> str:
    """Without the port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    # The body has not been read and will not be: the connection can carry no other request.
    start: Message = {"type": "http.response.start", "status": error.status, "headers": [*headers, (b"connection", b"close")]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
