"""``http(s)://`` URLs, with the care that URLs of strangers need.

httpcore2 (what httpx2 stands on) is used directly: it takes a network backend, where addresses are checked, follows no
redirect and reads no proxy from the environment by itself.
"""

from __future__ import annotations

import functools
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

import httpcore2
import httpx2

from internvideo_server.deadline import POLL_SECONDS, Deadline
from internvideo_server.errors import ErrorCode, ServingError, invalid

from ._addresses import CheckedBackend
from ._media import Media, check_size
from ._policy import MediaPolicy

_HEADERS = [("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "internvideo-triton")]
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")
_CONNECT_S = 5.0


def download(url: str, policy: MediaPolicy, param: str | None, deadline: Deadline) -> Media:
    """Download a URL into anonymous memory.

    Name resolution, connecting and reading block, so they run in a thread that is left behind when the request ends first;
    it ends by the policy's timeouts or before its next read, and throws its result away.

    Raises:
        ServingError: See :func:`internvideo_server.preprocessing.media.fetch`.
    """
    left = threading.Event()
    result = _in_thread(lambda: _follow(url, policy, param, left))
    too_long = time.monotonic() + policy.total_timeout
    try:
        while not wait([result], POLL_SECONDS).done:
            deadline.check("fetching the media")
            if time.monotonic() >= too_long:
                raise _unavailable(f"the download took longer than {policy.total_timeout:g} s", param)
        return result.result()
    except BaseException:
        left.set()
        result.add_done_callback(_discard)
        raise


def _follow(url: str, policy: MediaPolicy, param: str | None, left: threading.Event) -> Media:
    """Get the URL, hop by hop; each hop passes the same checks."""
    target = url
    for _ in range(_MAX_REDIRECTS + 1):
        parsed = _checked_url(target, policy, param)
        media, target = _get(parsed, policy, param, left)
        if media is not None:
            return media
    raise invalid(f"the URL redirects more than {_MAX_REDIRECTS} times: give the address it ends at", param)


def _checked_url(url: str, policy: MediaPolicy, param: str | None) -> httpx2.URL:
    """Parse the URL; what comes out is what is connected to, there is no second parser to disagree."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise invalid("the URL is malformed: write http(s)://host/path", param) from None
    if parsed.scheme not in ("http", "https"):
        raise ServingError(
            ErrorCode.PERMISSION_DENIED,
            "the URL redirects to something other than http(s): give the address of the file itself",
            param,
        )
    if not parsed.host or "%" in parsed.host or parsed.userinfo or not 0 < (80 if parsed.port is None else parsed.port) < 65536:
        raise invalid("the URL must be http(s)://host/path, without user name or password", param)
    if not policy.takes_host(parsed.host):
        raise ServingError(
            ErrorCode.PERMISSION_DENIED,
            "the URL's host is not one that this server fetches from (option --allowed-media-domains): send the file itself",
            param,
        )
    return parsed


def _get(url: httpx2.URL, policy: MediaPolicy, param: str | None, left: threading.Event) -> tuple[Media | None, str]:
    """One hop: the medium, or where it is said to be instead."""
    timeouts = {"connect": _CONNECT_S, "read": policy.read_timeout, "write": policy.read_timeout}
    origin = httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )  # as httpx2's own transport hands it over
    host = url.netloc.decode("ascii")
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=_tls(), network_backend=CheckedBackend(policy, param, left)) as pool,
            pool.stream("GET", origin, headers=[("Host", host), *_HEADERS], extensions={"timeout": timeouts}) as response,
        ):
            headers = httpx2.Headers(response.headers)
            if response.status in _REDIRECTS and "location" in headers:
                return None, str(url.join(headers["location"]))
            _check_status(response.status, param)
            if encodings := _real_encodings(headers.get("content-encoding", "")):
                text = f"the URL's host sends the media compressed ({encodings}) although asked not to: store it uncompressed"
                raise invalid(text, param)
            if (length := headers.get("content-length", "")).isdigit():
                check_size(int(length), policy, param)
            return Media.from_chunks(response.iter_stream(), policy, param), ""
    except (httpx2.InvalidURL, httpcore2.LocalProtocolError):
        raise invalid("the URL, or one it redirects to, is malformed: write http(s)://host/path", param) from None
    except httpcore2.TimeoutException:
        raise _unavailable("the URL's host did not answer in time: try again later, or send the file itself", param) from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
        raise _unavailable(f"the URL cannot be fetched: {str(error) or type(error).__name__}", param) from None


def _real_encodings(header: str) -> str:
    """Those of a ``Content-Encoding`` that change the bytes; object stores write other words into it too (``aws-chunked``)."""
    return ", ".join(name for each in header.split(",") if (name := each.strip().lower()) in _ENCODINGS)


def _check_status(status: int, param: str | None) -> None:
    if status in (404, 410):
        text = f"there is nothing behind the URL (its host answered {status}): check the address"
        raise ServingError(ErrorCode.NOT_FOUND, text, param)
    if status >= 500 or status == 429:
        raise _unavailable(f"the URL's host answered {status}", param)
    if status != 200:
        raise invalid(
            f"the URL cannot be fetched: its host answered {status}; try the address in a browser, or send the file itself", param
        )


def _in_thread(work: Callable[[], Media]) -> Future[Media]:
    result: Future[Media] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # goes to whoever waits
            result.set_exception(error)

    threading.Thread(target=run, name="media-download", daemon=True).start()
    return result


def _discard(result: Future[Media]) -> None:
    if result.exception() is None:
        result.result().close()


def _unavailable(message: str, param: str | None) -> ServingError:
    return ServingError(ErrorCode.UNAVAILABLE, message, param)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()
