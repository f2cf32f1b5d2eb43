"""Checks of a running server, from outside: alive, ready, what it serves, and whether it answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx2

from ._report import Check, Report, failed, ok, skipped, warning

_CALL_S = 10.0
_ANSWER_S = 60.0
_SLOW_S = 1.0


def check_server(url: str, api_key: str | None = None) -> Report:
    """Look at the server behind an OpenAI API; one question of one word is asked.

    Args:
        url: With or without ``/v1``.
        api_key: Sent as a bearer token.
    """
    return Report(tuple(_checks(url.rstrip("/").removesuffix("/v1"), api_key)))


def _checks(base: str, api_key: str | None) -> Iterator[Check]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        client = httpx2.Client(base_url=base, headers=headers, timeout=_CALL_S, trust_env=False)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        yield failed("url", f"{base}: {error}", "give a URL such as http://127.0.0.1:9997")
        return
    with client:
        began = time.monotonic()
        try:
            live = client.get("/health/live")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            yield failed("alive", f"{base} does not answer: {error}", "is it started, and is this its --host and --port?")
            return
        took = time.monotonic() - began
        if live.status_code != httpx2.codes.OK:
            yield failed("alive", f"HTTP {live.status_code}: {_message(live)}", "start it again; its log tells what died")
        elif took > _SLOW_S:
            yield warning("alive", f"answered after {took:.1f} s", "its host is overloaded")
        else:
            yield ok("alive", f"{base}, {1000 * took:.0f} ms")
        ready = client.get("/health/ready")
        if ready.status_code == httpx2.codes.OK:
            yield ok("ready", "every model of the chain")
        else:
            fix = "wait while it starts or heals; supervisor.log in its run directory tells what died"
            yield failed("ready", f"HTTP {ready.status_code}: {_message(ready)}", fix)
        models = client.get("/v1/models")
        if models.status_code != httpx2.codes.OK:
            fix = "--api-key" if models.status_code == httpx2.codes.UNAUTHORIZED else "is this an OpenAI API?"
            yield failed("models", f"HTTP {models.status_code}: {_message(models)}", fix)
            return
        names = [model["id"] for model in models.json()["data"]]
        yield ok("models", ", ".join(names))
        if ready.status_code != httpx2.codes.OK:
            yield skipped("answer", "not asked: it is not ready")
            return
        yield _answer(client, names[0])


def _answer(client: httpx2.Client, model: str) -> Check:
    began = time.monotonic()
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        answer = client.post("/v1/chat/completions", json=body, timeout=_ANSWER_S)
    except httpx2.HTTPError as error:
        return failed("answer", f"no answer to one word: {error or type(error).__name__}", "its logs hold the reason")
    if answer.status_code != httpx2.codes.OK:
        return failed("answer", f"HTTP {answer.status_code}: {_message(answer)}", "its logs hold the reason")
    return ok("answer", f"one token after {time.monotonic() - began:.2f} s")


def _message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
