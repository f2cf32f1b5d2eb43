"""The locale that the Triton models get, whatever the process was started with."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(InferenceRequest=object)
before = open("/dev/null").encoding
import internvideo_server.work
print(before, open("/dev/null").encoding)
"""


def test_files_are_read_as_utf8_in_a_process_without_a_locale() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    python = [sys.executable, "-X", "utf8=0", "-c", CODE]
    printed = subprocess.run(python, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert [name.replace("ANSI_X3.4-1968", "ascii").lower() for name in printed] == ["ascii", "utf-8"]
