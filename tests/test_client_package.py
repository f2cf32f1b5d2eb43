"""The client package as a whole: what it exports, what it must not import, and errors that survive Triton."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import internvideo_client
from internvideo_client.errors import from_triton
from internvideo_server.errors import ErrorCode, ServingError


def test_public_surface() -> None:
    assert internvideo_client.__all__ == [
        "ApiError",
        "AsyncVideoChat",
        "ChatAnswer",
        "Generation",
        "SamplingParams",
        "TokenBatch",
        "TritonChatClient",
        "VideoChat",
        "media_part",
    ]
    assert all(hasattr(internvideo_client, name) for name in internvideo_client.__all__)


@pytest.mark.parametrize("module", ["internvideo_client.adapter.__main__", "internvideo_client.cli"])
def test_client_needs_nothing_of_the_server_but_its_settings(module: str) -> None:
    code = f"""
import {module}, sys
shared = {{"internvideo_server." + name for name in ("settings", "errors", "limits", "project", "routing")}}
shared.add("internvideo_server")
unwanted = {{"torch", "transformers", "decord", "av"}} & set(sys.modules)
for name in sys.modules:
    if name.startswith("internvideo_server") and name not in shared and not name.startswith("internvideo_server.settings."):
        unwanted.add(name)
sys.exit(str(sorted(unwanted) or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


line = st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp", "Zs", "Cc"]), min_size=1)


@given(
    st.sampled_from(list(ErrorCode)),
    line,
    st.none() | st.from_regex(r"[a-z_.0-9]+", fullmatch=True),
    st.sampled_from(["", "in ensemble 'x', "]),
)
def test_error_of_a_model_arrives_whole(code: ErrorCode, message: str, param: str | None, prefix: str) -> None:
    error = from_triton(prefix + ServingError(code, message, param).text)
    assert (error.message, error.param, error.code) == (message, param, code.lower())


def test_every_code_has_a_status_of_its_own() -> None:
    statuses = {code: from_triton(ServingError(code, "x").text).status for code in ErrorCode}
    assert statuses == {
        ErrorCode.INVALID_ARGUMENT: 400,
        ErrorCode.PERMISSION_DENIED: 403,
        ErrorCode.NOT_FOUND: 422,
        ErrorCode.RESOURCE_EXHAUSTED: 429,
        ErrorCode.CANCELLED: 499,
        ErrorCode.INTERNAL: 500,
        ErrorCode.UNAVAILABLE: 503,
        ErrorCode.DEADLINE_EXCEEDED: 504,
    }


def test_the_first_token_may_take_as_long_as_the_whole_request() -> None:
    async def first_wait() -> float:
        async with internvideo_client.TritonChatClient("127.0.0.1:1", request_timeout_s=900) as client:
            return client.generate([])._first_timeout_s

    assert asyncio.run(first_wait()) == 900


def test_the_router_runs_where_only_the_client_is_installed() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    server, client = project["optional-dependencies"]["server"], project["dependencies"]
    names = {re.split(r"[^a-z0-9_-]", each)[0].replace("-", "_") for each in server}
    names -= {re.split(r"[^a-z0-9_-]", each)[0].replace("-", "_") for each in client} | {"protobuf"}  # of tritonclient
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(names)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from internvideo_client.cli import app
app(["router", "--replica", "a=http://h:1", "--print"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "server a h:1" in done.stdout, done.stderr
