"""The commands and programs of README, the docs and examples/ do what they say, against the real server with the demo model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings
from tests.asking import FREE_PORTS
from tests.conftest import ROOT
from tests.docs_blocks import Block, blocks

pytestmark = [pytest.mark.server, pytest.mark.ci]

RUN = [block for block in blocks() if block.why is None]
LANGCHAIN = ROOT / ".venv" / "clients" / "newest" / "bin" / "python"  # tests/clients: its packages exclude the server's
DESCRIBED = "A yellow star moves to the left. A green triangle moves up."
DESCRIBED_ZH = "黄色星形向左移动。绿色三角形向上移动。"


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the docs: a folder like a clone's, and a server.

    Attributes:
        folder: With ``.venv`` and ``examples``.
        server: It may read the folder's files.
    """

    folder: Path
    server: RunningServer

    def run(self, *command: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run something there; what goes wrong fails the test with its words."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INTERNVIDEO_")}
        environment |= {"INTERNVIDEO_URL": self.server.adapter_url, "NO_COLOR": "1", "COLUMNS": "200"}
        result = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def here(self, text: str) -> str:
        """A block's text for this server and these folders."""
        text = text.replace("http://127.0.0.1:9997", self.server.adapter_url).replace("/videos/", f"{self.folder}/videos/")
        return re.sub(r"\.venv/bin/", f"{Path(sys.executable).parent}/", text)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader").resolve()
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "videos").mkdir()
    shutil.copy(ROOT / "examples" / "demo.mp4", folder / "videos" / "red-panda.mp4")
    options = ServeSettings(device="cpu", num_frames=8, allowed_local_media_path=[folder], **FREE_PORTS)
    with start(options) as server:
        yield Reader(folder, server)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_as_it_is_written(reader: Reader, block: Block) -> None:
    text = reader.here(block.text)
    command = [sys.executable, "-c", text] if block.kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    result = reader.run(*command)
    assert '"error"' not in result.stdout
    assert result.stdout or result.stderr


def test_video_chat(reader: Reader) -> None:
    lines = reader.run(
        sys.executable, "examples/video_chat.py", "examples/demo.mp4", reader.server.adapter_url
    ).stdout.splitlines()
    assert re.fullmatch(rf"{DESCRIBED} \d+ 16", lines[0])
    assert "triangle" in lines[1]
    assert re.search("[一-鿿]", lines[2])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg cuts the recording")
def test_watching_a_file_that_grows(reader: Reader) -> None:
    recording = reader.folder / "recording.ts"
    encoded = ["-stream_loop", "3", "-i", "examples/demo.mp4", "-c:v", "libx264", "-g", "12", "-y"]
    reader.run("ffmpeg", "-v", "error", *encoded, "whole.ts")
    whole = (reader.folder / "whole.ts").read_bytes()
    recording.write_bytes(whole[: len(whole) // 2])
    program = [sys.executable, "examples/watch.py", str(recording), reader.server.adapter_url]
    wanted = ["--every", "2", "--question", "Describe the video.", "--keep", "2"]
    with subprocess.Popen([*program, *wanted], cwd=reader.folder, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            first = watching.stdout.readline()  # of what was there, though the file has no end yet
            with recording.open("ab") as file:
                file.write(whole[len(whole) // 2 :])
            lines = [first, *(watching.stdout.readline() for _ in range(3))]
        finally:
            watching.send_signal(signal.SIGINT)
            try:
                watching.wait(60)
            except subprocess.TimeoutExpired:
                watching.kill()
    assert watching.returncode == 0
    for number, line in enumerate(lines):
        assert re.match(rf"00000{number}\.ts: .+ \(16 of {16 * min(number + 1, 4)} frames were new\)$", line), lines


def test_openai(reader: Reader) -> None:
    out = reader.run(sys.executable, "examples/openai_client.py", "examples/demo.mp4", reader.server.adapter_url).stdout
    assert out.startswith(DESCRIBED)
    assert "'first_token_ms'" in out


def test_langchain(reader: Reader) -> None:
    if not LANGCHAIN.exists():
        pytest.skip("needs the environment of real clients: make test-ci")
    out = reader.run(LANGCHAIN, "examples/langchain_client.py", "examples/demo.mp4", reader.server.adapter_url).stdout
    assert out == f"{DESCRIBED}\n"


def test_curl(reader: Reader) -> None:
    out = reader.run("bash", "examples/ask.sh", "examples/demo.mp4", reader.server.adapter_url).stdout
    assert out.splitlines()[0] == DESCRIBED
    assert re.search("[一-鿿]", out.splitlines()[1])


def test_tritonclient(reader: Reader) -> None:
    tokenizer = reader.server.engine / "tokenizer.json"
    program = [sys.executable, "examples/triton_client.py"]
    assert reader.run(*program, "examples/demo.mp4", tokenizer, reader.server.grpc_url).stdout == f"{DESCRIBED}\n"


def test_video_mme(reader: Reader) -> None:
    options = ["A. red", "B. green", "C. blue", "D. yellow"]
    rows = [
        {"videoID": "star", "question_id": f"{number}", "duration": "short", "domain": domain, "task_type": "Colour"}
        | {"question": "What colour is the star?", "options": options, "answer": "D"}
        for number, domain in enumerate(["Shapes", "Shapes", "Motion"])
    ]
    rows.append({**rows[0], "videoID": "cut", "question_id": "9"})
    folder = reader.folder / "mme"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "demo.mp4", folder / "star.mp4")
    (folder / "cut.mp4").write_bytes(b"no video")
    questions, out = reader.folder / "questions.jsonl", reader.folder / "answers.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = [sys.executable, "examples/evaluate_videomme.py", questions, folder, "--out", out, "--num-frames", "8", "--guided"]
    table = reader.run(*program, "--url", reader.server.adapter_url).stdout
    answers = {row["question_id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert all(answers[each]["prediction"] in "ABCD" for each in "012")
    assert answers["9"]["error"].startswith("400")
    right = sum(row["right"] for row in answers.values())
    assert f"| all |  | 4 | {100 * right / 4:.1f} |" in table
    assert "1 could not be asked" in table
    # Called again it asks for what failed alone.
    shutil.copy(ROOT / "examples" / "demo.mp4", folder / "cut.mp4")
    for each in "012":
        answers[each]["response"] = "kept"
    out.write_text("".join(json.dumps(row) + "\n" for row in answers.values()))
    assert "could not be asked" not in reader.run(*program, "--url", reader.server.adapter_url).stdout
    assert sum('"kept"' in line for line in out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("D. A red panda", "D"),
        ("The best answer is A.", "A"),
        ("I do not know", ""),
        ("Because, B", "B"),
    ],
)
def test_the_letter_of_an_answer(answer: str, expected: str) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("evaluate_videomme", ROOT / "examples" / "evaluate_videomme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.letter(answer) == expected
