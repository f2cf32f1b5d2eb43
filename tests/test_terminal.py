"""The client's commands in a real terminal and between pipes: signs of work, bars, conversations, Ctrl-C, exit codes."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from tests.fake_triton import FakeTriton, Step, piece
from tests.terminal import INTERNVIDEO, Terminal, piped, terminal

HELLO = [Step([piece("Hello")]), Step([piece("▁world")])]


def chat(url: str, *words: str) -> list[str]:
    return [INTERNVIDEO, "chat", *words, "--url", url]


def requests(folder: Path, count: int) -> Path:
    file = folder / "in.jsonl"
    body = {"model": "InternVideo2_5", "messages": [{"role": "user", "content": "hi"}]}
    file.write_text("".join(json.dumps({"custom_id": str(number), "body": body}) + "\n" for number in range(count)))
    return file


def test_a_terminal_shows_that_an_answer_is_waited_for_and_a_pipe_only_the_answer(fake: FakeTriton, url: str) -> None:
    gate = threading.Event()
    fake.script = [Step([piece("Hello")], gate=gate), Step([piece("▁world")])]
    with terminal(*chat(url, "file:///a.mp4", "What?")) as screen:
        screen.wait_for("waiting for the answer 0:00:0")
        gate.set()
        screen.wait_for("Hello world")
        assert screen.end() == 0
        assert screen.raw.endswith("Hello world\r\n")
    done = piped(*chat(url, "file:///a.mp4", "What?"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello world\n", "")


def test_bars_are_drawn_on_a_terminal_and_not_in_a_pipe(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = HELLO
    commands = {
        "bench": [INTERNVIDEO, "bench", "--url", url, "--streams", "1", "--requests", "3", "--max-tokens", "2"],
        "batch": [INTERNVIDEO, "batch", str(requests(tmp_path, 3)), str(tmp_path / "out.jsonl"), "--url", url],
    }
    for name, command in commands.items():
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        with terminal(*command) as screen:
            assert screen.end() == 0, screen.text
            assert "━━━" in screen.text
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        done = piped(*command)
        assert done.returncode == 0
        assert done.stdout.startswith("| streams |") if name == "bench" else not done.stdout
        assert done.stderr == ("" if name == "bench" else "3 answered, 0 failed\n")


def test_a_conversation_in_a_terminal(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = HELLO
    saved = tmp_path / "talk.json"
    with terminal(*chat(url, "file:///a.mp4"), HOME=str(tmp_path)) as screen:
        screen.wait_for(">")
        screen.type("/frames 16\n/clip 1 2.5\n/video file:///b.mp4\nWhat?\n")
        screen.wait_for("Hello world")
        screen.wait_for("tokens")
        screen.wait_for(">")
        screen.type("And then?\n")
        screen.wait_for("Hello world")
        screen.wait_for(">")
        screen.type(f"/save {saved}\n/nonsense\n")
        screen.wait_for("/quit")
        screen.type("/quit\n")
        assert screen.end() == 0
    first, second = (request["messages"] for request in fake.requests)
    sampling = {"num_frames": 16, "start": 1.0, "end": 2.5}
    assert [part.get("video_url") for part in first[0]["content"]] == [
        {"url": "file:///a.mp4", **sampling},
        {"url": "file:///b.mp4", **sampling},
        None,
    ]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert [message["role"] for message in json.loads(saved.read_text())] == ["user", "assistant", "user", "assistant"]


def test_a_conversation_that_is_kept_names_its_local_files(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.script = HELLO
    clip, saved = tmp_path / "a clip.mp4", tmp_path / "talk.json"
    clip.write_bytes(b"not looked at here")
    done = subprocess.run(chat(url, str(clip)), input=f"What?\n/save {saved}\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(saved.read_text())[0]["content"][0]["video_url"] == {"url": clip.as_uri()}


def test_ctrl_c_ends_an_answer_and_not_the_conversation(fake: FakeTriton, url: str, tmp_path: Path) -> None:
    fake.first_scripts = [[Step([piece("Hello")]), Step(gate=threading.Event())]]
    fake.script = HELLO
    with terminal(*chat(url), HOME=str(tmp_path)) as screen:
        screen.wait_for(">")
        screen.type("One?\n")
        screen.wait_for("Hello")
        screen.type("\x03")
        screen.wait_for("(stopped)")
        screen.wait_for(">")
        screen.type("Two?\n")
        screen.wait_for("Hello world")
        screen.wait_for(">")
        screen.type("\x04")
        assert screen.end() == 0
    assert fake.cancelled.is_set() or fake.stops
    assert [message["content"][-1]["text"] for message in fake.requests[1]["messages"]] == ["Two?"]


def interrupted(screen: Terminal) -> int:
    screen.type("\x03")
    return screen.end()


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_ends_a_single_question_with_130(fake: FakeTriton, url: str, begun: bool) -> None:
    never = Step(gate=threading.Event())
    fake.script = [Step([piece("Hello")]), never] if begun else [never]
    with terminal(*chat(url, "file:///a.mp4", "What?")) as screen:
        screen.wait_for("Hello" if begun else "waiting for the answer")
        assert interrupted(screen) == 130
        assert "Traceback" not in screen.text


@pytest.mark.parametrize("command", ["batch", "bench"])
def test_ctrl_c_ends_batch_and_bench_with_130(fake: FakeTriton, url: str, tmp_path: Path, command: str) -> None:
    fake.script = [Step(gate=threading.Event())]
    words = [str(requests(tmp_path, 3)), str(tmp_path / "out.jsonl")] if command == "batch" else ["--streams", "2"]
    with terminal(INTERNVIDEO, command, *words, "--url", url) as screen:
        screen.wait_for("━━━")
        assert fake.reached.wait(30)
        assert interrupted(screen) == 130
        assert "Traceback" not in screen.text
