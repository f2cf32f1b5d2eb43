"""What the Triton models are given, whatever their process was started with: a locale, and descriptors."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

CODE = """
import resource, sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(InferenceRequest=object)
before = open("/dev/null").encoding
from internvideo_server.triton_model import prepare_process
prepare_process()
print(before, open("/dev/null").encoding)
print(*resource.getrlimit(resource.RLIMIT_NOFILE), file=sys.stderr)
"""
OPEN_MEDIA = """
import json, os, sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(InferenceRequest=object)
from pathlib import Path
from internvideo_server.preprocessing.media import MediaPolicy, fetch
from internvideo_server.triton_model import parameters, prepare_process
prepare_process()
root, *urls = json.loads(sys.stdin.read())
config = {"parameters": {"root": {"string_value": root}}}
policy = MediaPolicy((Path(parameters({"model_config": json.dumps(config)})["root"]),))
for url in urls:
    with fetch(url, policy) as medium:
        print(sys.getfilesystemencoding(), medium.size)
"""


def run_without_a_locale(code: str, stdin: str = "") -> list[str]:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    python = [sys.executable, "-X", "utf8=0", "-c", code]
    return subprocess.run(python, env=environment, input=stdin, capture_output=True, text=True, check=True).stdout.split()


def test_files_are_read_as_utf8_in_a_process_without_a_locale() -> None:
    printed = run_without_a_locale(CODE)
    assert [name.replace("ANSI_X3.4-1968", "ascii").lower() for name in printed] == ["ascii", "utf-8"]


def test_as_many_files_may_be_open_as_the_host_allows() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    python = ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", sys.executable, "-c", CODE]
    assert subprocess.run(python, capture_output=True, text=True, check=True).stderr.split() == [str(most)] * 2


def test_media_with_chinese_names_are_found_in_a_process_without_a_locale(tmp_path: Path) -> None:
    folder = tmp_path / "视频"
    folder.mkdir()
    (folder / "红熊猫.mp4").write_bytes(b"content")
    urls = [f"file://{folder}/红熊猫.mp4", (folder / "红熊猫.mp4").as_uri()]  # as typed, and percent-encoded
    assert run_without_a_locale(OPEN_MEDIA, json.dumps([str(folder), *urls])) == ["ascii", "7"] * 2
