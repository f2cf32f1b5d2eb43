"""``internvideo batch``: a file of requests, answered into a file, in OpenAI's batch format."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from internvideo_client.errors import ApiError
from internvideo_client.http_chat import Server

from ._shared import DEFAULT_URL, ApiKey, Url, bar, errors, failed, reported

_TRIES = 5  # of a request that the server has no room for


def batch(
    requests: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines: custom_id, method, url, body")],
    out: Annotated[
        Path, typer.Argument(help="JSON lines to write; requests that are answered there already are not asked again")
    ],
    streams: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Answer a file of requests; called again after an interruption it goes on where it stopped. Exit code 1 if any failed."""
    with reported():
        todo = list(_unanswered(requests, out))
        with bar() as progress, out.open("a", encoding="utf-8") as file:
            task = progress.add_task("requests", total=len(todo))

            def done(line: dict[str, Any]) -> None:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()  # an interruption costs what is under way and no more
                progress.advance(task)

            bad = asyncio.run(_run(Server(url, api_key), todo, streams, done))
    errors.print(f"{len(todo) - bad} answered, {bad} failed")
    if bad:
        raise typer.Exit(1)


def _unanswered(requests: Path, out: Path) -> Iterator[dict[str, Any]]:
    """The requests whose ids stand in no line of the output that came with status 200."""
    answered, seen = _answered_before(out), set[str]()
    for number, line in enumerate(requests.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            custom_id, body = str(entry["custom_id"]), dict(entry["body"])
        except (ValueError, KeyError, TypeError) as error:
            raise failed(f"{requests}, line {number}: not a request with custom_id and body ({error!r})") from None
        if custom_id in seen:
            raise failed(f"{requests}, line {number}: custom_id {custom_id!r} stands there twice; ids must be unique")
        seen.add(custom_id)
        if custom_id not in answered:
            yield {"custom_id": custom_id, "path": str(entry.get("url", "/v1/chat/completions")), "body": body}


def _answered_before(out: Path) -> set[str]:
    """The ids of an earlier run's answers; what failed then, or was cut off, is taken out of the file."""
    if not out.exists():
        return set()
    lines, answered = out.read_text(encoding="utf-8").split("\n"), {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            custom_id, response = str(entry["custom_id"]), entry["response"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # only the last can have been cut off
                raise failed(f"{out}, line {number}: no answer of `batch`; the file is left as it is, choose another") from None
            continue
        if response is not None and response["status_code"] == httpx2.codes.OK:
            answered[custom_id] = line
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text("".join(f"{line}\n" for line in answered.values()), encoding="utf-8")
    beside.replace(out)
    return set(answered)


async def _run(server: Server, todo: list[dict[str, Any]], streams: int, done: Any) -> int:
    """Ask all; how many failed."""
    entries, bad = iter(todo), 0

    async def one_stream(client: httpx2.AsyncClient) -> None:
        nonlocal bad
        for entry in entries:
            line = await _answered(server, client, entry)
            bad += line["error"] is not None or line["response"]["status_code"] != httpx2.codes.OK
            done(line)

    async with httpx2.AsyncClient(**server.options) as client, asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            tasks.create_task(one_stream(client))
    return bad


async def _answered(server: Server, client: httpx2.AsyncClient, entry: dict[str, Any]) -> dict[str, Any]:
    """A line of the output: the response whatever its status, or the error of a connection."""
    line: dict[str, Any] = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": entry["custom_id"],
        "response": None,
        "error": None,
    }
    endpoint = server.endpoint(entry["path"].removeprefix("/v1/").lstrip("/"))
    body = {key: value for key, value in entry["body"].items() if key not in ("stream", "stream_options")}
    for attempt in range(_TRIES):
        try:
            response = await client.post(endpoint, json=body)
        except httpx2.TransportError as error:
            line["error"] = {"code": "unavailable", "message": str(error) or repr(error)}
        else:
            line["error"] = None
            line["response"] = {
                "status_code": response.status_code,
                "request_id": response.headers.get("x-request-id", ""),
                "body": _json(response),
            }
            if response.status_code not in (429, 503):
                return line
        await asyncio.sleep(float(2**attempt) if line["error"] else _pause(response, attempt))
    return line


def _pause(response: httpx2.Response, attempt: int) -> float:
    after = response.headers.get("retry-after", "")
    return float(after) if after.isdecimal() else float(2**attempt)


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return ApiError(response.status_code, response.text[:300]).body
