"""What the Triton models are given, whatever their process was started with: a locale, and descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

CODE = """
import resource, sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(InferenceRequest=object)
before = open("/dev/null").encoding
import internvideo_server.work
print(before, open("/dev/null").encoding)
print(*resource.getrlimit(resource.RLIMIT_NOFILE), file=sys.stderr)
"""


def test_files_are_read_as_utf8_in_a_process_without_a_locale() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    python = [sys.executable, "-X", "utf8=0", "-c", CODE]
    printed = subprocess.run(python, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert [name.replace("ANSI_X3.4-1968", "ascii").lower() for name in printed] == ["ascii", "utf-8"]


def test_as_many_files_may_be_open_as_the_host_allows() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    python = ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", sys.executable, "-c", CODE]
    assert subprocess.run(python, capture_output=True, text=True, check=True).stderr.split() == [str(most)] * 2
