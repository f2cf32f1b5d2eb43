"""The Triton backend around the embedded engine, without Triton: what one request's fault costs the others."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

MODEL = Path(__file__).resolve().parents[1] / "server" / "backends" / "tensorrtllm" / "model.py"


class Request:
    def __init__(self, name: str) -> None:
        self.name, self.errors = name, []

    def request_id(self) -> str:
        return self.name

    def requested_output_names(self) -> list[str]:
        return ["output_ids", "sequence_length"]

    def inputs(self) -> list[Any]:
        return []

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.errors.append((response.error.text, flags)))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, on a stand-in for the one that exists only inside a stub process."""
    triton = ModuleType("triton_python_backend_utils")
    triton.__dict__.update(
        TritonError=type("TritonError", (), {"INTERNAL": 1, "__init__": lambda self, text, code: setattr(self, "text", text)}),
        InferenceResponse=lambda error: SimpleNamespace(error=error),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
    before = {name for name in sys.modules if name.startswith("internvideo_server.triton_model")}
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("tensorrtllm_backend", MODEL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith("internvideo_server.triton_model") and name not in before]:
        del sys.modules[name]


def test_a_request_that_fails_in_an_unforeseen_way_is_answered_and_so_are_the_others(
    backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = backend.TritonPythonModel()

    def take(request: Request, sink: object) -> None:
        if request.name == "odd":
            raise RuntimeError("cannot reshape a tensor in /srv")
        raise backend.RefusedRequestError("request_output_len is not present in the request")

    monkeypatch.setattr(model, "_take", take)
    requests = [Request("odd"), Request("wrong")]
    model.execute(requests)
    assert [request.errors for request in requests] == [
        [("the request could not be taken: RuntimeError", 1)],
        [("request_output_len is not present in the request", 1)],
    ]
    assert "cannot reshape" in caplog.text
