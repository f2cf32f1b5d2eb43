"""A laboratory for the launcher: a project home with trivial models in the places of the real ones, and a trivial adapter.

The real tritonserver runs it in about a second, so the tests of starting, stopping and dying need neither torch nor a checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

MODEL = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # A living thread keeps an orphaned stub from ending by itself, as the real models' workers do.
        self.thread = threading.Thread(target=threading.Event().wait, daemon=True)
        self.thread.start()
        self.text = args["model_config"]

    def execute(self, requests):
        output = pb_utils.Tensor("CONFIG", np.array([self.text.encode()], dtype=object))
        return [pb_utils.InferenceResponse([output]) for _ in requests]
"""

BROKEN_MODEL = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the tower has no weights")
"""

SLOW_MODEL = """
import threading


class TritonPythonModel:
    def initialize(self, args):
        threading.Event().wait(300)
"""

ADAPTER = """
import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({status})
        self.end_headers()
        self.wfile.write(b"no engine")

    def log_message(self, *args):
        pass


parser = argparse.ArgumentParser()
for flag in ("--host", "--port", "--triton", "--tokenizer", "--request-timeout"):
    parser.add_argument(flag, required=True)
options = parser.parse_args()
ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()
"""

CONFIG = """
backend: "{backend}"
max_batch_size: 1
input [ {{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] optional: true }} ]
output [
  {{ name: "CONFIG" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "prompt_embedding_table" data_type: TYPE_BF16 dims: [ -1, -1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "kept" value {{ string_value: "as it was" }} }}
"""


class Lab:
    """Directories of a laboratory below ``root``."""

    def __init__(self, root: Path) -> None:
        self.home, self.engine, self.checkpoint = root / "home", root / "engine", root / "checkpoint"
        self.run_ids: list[str] = []
        self.python_path = root / "python"
        for name in ("preprocessing", "vit", "tensorrt_llm"):
            backend = "tensorrtllm" if name == "tensorrt_llm" else "python"
            _write(self.home / "model_repository" / name / "config.pbtxt", CONFIG.format(backend=backend))
            _write(self.home / "model_repository" / name / "1" / "model.py", MODEL)
        _write(self.home / "server" / "backends" / "tensorrtllm" / "model.py", MODEL)
        _write(self.python_path / "internvideo_client" / "adapter.py", ADAPTER.format(status=200))
        self.checkpoint.mkdir()
        _write(self.engine / "llama" / "config.json", "{}")
        _write(self.engine / "tokenizer.json", "{}")
        self.write_engine_limits()

    def write_engine_limits(self, dtype: str = "float32", frames: int = 128) -> None:
        pretrained = {"architecture": "LlamaForCausalLM", "dtype": dtype, "vocab_size": 1500, "hidden_size": 64}
        build = {"max_batch_size": 2, "max_input_len": 8191, "max_seq_len": 8192, "max_num_tokens": 8192}
        build["max_prompt_embedding_table_size"] = 2 * frames * 16
        _write(self.engine / "config.json", json.dumps({"pretrained_config": pretrained, "build_config": build}))

    def break_model(self, name: str) -> None:
        _write(self.home / "model_repository" / name / "1" / "model.py", BROKEN_MODEL)

    def break_adapter(self) -> None:
        _write(self.python_path / "internvideo_client" / "adapter.py", ADAPTER.format(status=503))

    def slow_model(self, name: str) -> None:
        """A model that does not finish loading."""
        _write(self.home / "model_repository" / name / "1" / "model.py", SLOW_MODEL)

    def note_runs(self) -> None:
        """Remember the ids of the runs that are there, to look for their remains later."""
        for directory in Path(tempfile.gettempdir()).glob("internvideo-*"):
            if (run_id := directory.name.rpartition("-")[2]) not in self.run_ids:
                self.run_ids.append(run_id)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
