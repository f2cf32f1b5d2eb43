"""The locale that the Triton models get, whatever the process was started with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

CODE = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(InferenceRequest=object)
before = open("/dev/null").encoding
import internvideo_server.work
print(before, open("/dev/null").encoding)
"""

ARGS = """
args = {"model_config": json.dumps({"parameters": {"folder": {"string_value": sys.argv[1]}}})}
folder = Path(internvideo_server.work.parameters(args)["folder"])
with fetch(sys.argv[2], MediaPolicy(allowed_local_roots=(folder,))) as medium:
    print(os.pread(medium.fd, medium.size, 0).decode())
"""
IMPORTS = """
import json, os
from pathlib import Path
from internvideo_server.media import MediaPolicy, fetch
"""


def run(code: str, *arguments: str) -> str:
    """Run code in a Python that takes file names for ASCII, as Triton's stub does: what it prints."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    python = [sys.executable, "-X", "utf8=0", "-c", code, *arguments]
    return subprocess.run(python, env=environment, capture_output=True, text=True, check=True).stdout


def test_files_are_read_as_utf8_in_a_process_without_a_locale() -> None:
    printed = run(CODE).split()
    assert [name.replace("ANSI_X3.4-1968", "ascii").lower() for name in printed] == ["ascii", "utf-8"]


@pytest.mark.parametrize("encoded", [True, False])
def test_media_folders_and_files_may_have_any_name(tmp_path: Path, encoded: bool) -> None:
    folder = tmp_path / "视频 é"
    folder.mkdir()
    (folder / "红熊猫.mp4").write_text("a red panda")
    path = str(folder / "红熊猫.mp4")
    url = f"file://{quote(path) if encoded else path}"
    # The URL's characters come as JSON, so they do not depend on how the process was started.
    code = CODE + IMPORTS + "sys.argv[1:] = json.loads(sys.argv[1])\n" + ARGS
    assert run(code, json.dumps([str(folder), url])).endswith("a red panda\n")
