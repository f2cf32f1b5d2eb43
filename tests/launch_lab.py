"""A laboratory for the launcher: a project home with trivial models in the places of the real ones, and a trivial adapter.

The real tritonserver runs it in about a second, so the tests of starting, stopping and dying need neither torch nor a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config

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

HUNGRY_MODEL = """
import os
import time


def eat():
    while not os.path.exists({sign!r}):
        time.sleep(0.02)
    os.unlink({sign!r})
    eaten = [bytes(1 << 20 << 4).replace(b"\\0", b"x") for _ in range(1000)]


if {at_once}:
    open({sign!r}, "w").close()
    eat()
else:
    threading.Thread(target=eat, daemon=True).start()
"""

SLOW_MODEL = """
import threading


class TritonPythonModel:
    def initialize(self, args):
        threading.Event().wait(300)
"""

RANK_MODEL = """
import os
import threading

if os.environ["OMPI_COMM_WORLD_RANK"] != "0":
    threading.Event().wait()  # NVIDIA's backend stays inside the loading where it does not lead
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
options, _ = parser.parse_known_args()
ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()
"""

# What is not in this folder is found in the real package.
EXTENDED_PACKAGE = """
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
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
        _write(self.python_path / "internvideo_client" / "__init__.py", EXTENDED_PACKAGE)
        _write(self.python_path / "internvideo_client" / "adapter.py", ADAPTER.format(status=200))
        _write(self.checkpoint / "config.json", json.dumps(model_config(DIMENSIONS[Size.TINY], "float32")))
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

    def hungry_model(self, name: str, sign: Path, *, at_once: bool) -> None:
        """A model that takes all the memory there is when ``sign`` appears, or when it is loaded."""
        source = MODEL + HUNGRY_MODEL.format(sign=str(sign), at_once=at_once)
        _write(self.home / "model_repository" / name / "1" / "model.py", source)

    def talking_model(self, name: str) -> None:
        """A model that writes to a log of its own, as the real ones do, and to the server's."""
        own = f"""
import os, sys
print("words of everybody", flush=True)
sys.stdout = open(os.path.join(os.environ["INTERNVIDEO_LOG_DIRECTORY"], "{name}.log"), "a")
print("words of {name} alone", flush=True)
"""
        _write(self.home / "model_repository" / name / "1" / "model.py", MODEL + own)

    def break_running_model(self, name: str, run_directory: Path) -> None:
        """The next load of it fails."""
        _write(run_directory / "model_repository" / name / "1" / "model.py", BROKEN_MODEL)

    @contextlib.contextmanager
    def slow_running_model(self, name: str, run_directory: Path) -> Iterator[None]:
        """Its loads that begin meanwhile do not finish."""
        source = run_directory / "model_repository" / name / "1" / "model.py"
        before = source.read_text()
        _write(source, SLOW_MODEL)
        yield
        _write(source, before)

    def break_adapter(self) -> None:
        _write(self.python_path / "internvideo_client" / "adapter.py", ADAPTER.format(status=503))

    def slow_model(self, name: str) -> None:
        """A model that does not finish loading."""
        _write(self.home / "model_repository" / name / "1" / "model.py", SLOW_MODEL)

    def spread_over_two_ranks(self) -> None:
        """An engine directory as of TensorRT-LLM, and a backend that behaves like NVIDIA's towards Triton."""
        config = json.loads((self.engine / "config.json").read_text())
        config["pretrained_config"]["mapping"] = {"world_size": 2}
        _write(self.engine / "config.json", json.dumps(config))
        for rank in range(2):
            _write(self.engine / f"rank{rank}.engine", "")
        _write(self.home / "server" / "backends" / "tensorrtllm" / "model.py", MODEL + RANK_MODEL)

    def note_runs(self) -> None:
        """Remember the ids of the runs that are there, to look for their remains later."""
        for directory in Path(tempfile.gettempdir()).glob("internvideo-*"):
            if (run_id := directory.name.rpartition("-")[2]) not in self.run_ids:
                self.run_ids.append(run_id)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
