"""``internvideo chat``: one question, or a conversation."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from internvideo_client.errors import ApiError
from internvideo_client.video_chat import ChatAnswer, VideoChat

from ._shared import DEFAULT_URL, MODEL_ID, ApiKey, Model, Url, Waiting, errors, failed, reported, show

HELP = """[dim]/video PATH_OR_URL  add a video                   /frames N        look at N frames of the videos to come
/clip FROM TO       seconds of the videos to come  /save FILE.json  keep the conversation
/help  /quit        anything else is a question[/]"""


def chat(
    video: Annotated[
        str | None, typer.Argument(help="video or image: a local file (it is sent along), a URL, or - for standard input")
    ] = None,
    question: Annotated[str | None, typer.Argument(help="what to ask about it; without it, a conversation begins")] = None,
    url: Url = DEFAULT_URL,
    also: Annotated[list[str] | None, typer.Option("--video", help="one more video of the question; repeatable")] = None,
    num_frames: Annotated[int | None, typer.Option(help="frames to look at")] = None,
    fps: Annotated[float | None, typer.Option(help="frames a second, instead of --num-frames")] = None,
    start: Annotated[float | None, typer.Option(help="seconds: where to begin")] = None,
    end: Annotated[float | None, typer.Option(help="seconds: where to end")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="longest answer")] = None,
    temperature: Annotated[float | None, typer.Option(help="0, or left out: always the likeliest token")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    api_key: ApiKey = None,
    model: Model = MODEL_ID,
    timings: Annotated[bool, typer.Option("--timings", help="show where the time went")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object: answer, finish_reason, usage")] = False,
) -> None:
    """Ask a running server about a video; the answer is shown as it comes. Without a question: a conversation."""
    options: dict[str, Any] = {
        "num_frames": num_frames,
        "fps": fps,
        "start": start,
        "end": end,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if question is None and "-" in [video, *(also or [])]:
        raise failed("- takes all of standard input, and no question can be typed then: give the question, too")
    videos = [_source(each) for each in ([video] if video else []) + (also or [])]
    waiting = Waiting("waiting for the answer")
    with reported():
        talk = VideoChat(url, api_key=api_key, model=model, system=system, on_upload=waiting.sent)
        session = Session(talk, waiting, options, videos)
        if question is None:
            if not session.talk():
                raise typer.Exit(1)
        elif as_json:
            with waiting:
                answer = session.chat.ask(session.take_videos(), question, **options)
            document = {"answer": answer.text, "finish_reason": answer.finish_reason, "usage": answer.usage}
            show(json.dumps(document, ensure_ascii=False) + "\n")
        else:
            session.ask(question, timings=timings)


@dataclass
class Session:
    """A conversation on the terminal.

    Args:
        chat: With the server.
        waiting: Shown until an answer begins.
        options: Of each question.
        videos: Of the next question.
    """

    chat: VideoChat
    waiting: Waiting
    options: dict[str, Any]
    videos: list[str | Path] = field(default_factory=list)

    def take_videos(self) -> list[str | Path]:
        """The videos of the question that is asked now."""
        taken, self.videos = self.videos, []
        return taken

    def ask(self, question: str, *, timings: bool = False) -> None:
        """Ask, and show the answer as it comes."""
        answer = self.chat.ask(self.take_videos(), question, stream=True, **self.options)
        texts = iter(answer)
        with self.waiting:
            first = next(texts, "")
        show(first)
        for text in texts:
            show(text)
        show("\n")
        if answer.finish_reason == "length":
            errors.print("[yellow](cut at the limit of tokens)[/]")
        if timings:
            errors.print(f"[dim]{escape(timing_line(answer))}[/]", soft_wrap=True)

    def talk(self) -> bool:
        """Read questions and commands until the end of the input; False where they came by a pipe and not all was well."""
        read, well = _reader(), True
        errors.print(HELP)
        while (line := read()) is not None:
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        break
                elif line:
                    self.ask(line, timings=True)
            except BrokenPipeError:
                raise
            except (ApiError, OSError, ValueError) as error:  # the conversation goes on
                well = False
                errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
            except KeyboardInterrupt:
                show("\n")
                errors.print("[yellow](stopped)[/]")
        return well or sys.stdin.isatty()

    def command(self, line: str) -> bool:
        """Do what a line that begins with a slash says; False ends the conversation."""
        name, _, rest = line.partition(" ")
        words = rest.split()
        if name == "/video" and rest:
            self.videos.append(_source(rest.strip()))
        elif name == "/frames" and len(words) == 1:
            self.options["num_frames"] = int(words[0])
        elif name == "/clip" and len(words) in (0, 2):
            self.options["start"], self.options["end"] = map(float, words) if words else (None, None)
        elif name == "/save" and rest:
            Path(rest.strip()).write_text(
                json.dumps(self.chat.messages, ensure_ascii=False, indent=2, default=str) + "\n", "utf-8"
            )
        elif name == "/quit":
            return False
        else:
            errors.print(HELP)
        return True


def timing_line(answer: ChatAnswer) -> str:
    """Where the time went, in a line."""
    stages = [
        f"{name.removesuffix('_ms').replace('_', ' ')} {value / 1000:.2f} s"
        for name, value in answer.timings.items()
        if name.endswith("_ms") and value
    ]
    tokens = f"{answer.usage.get('prompt_tokens', 0)} + {answer.usage.get('completion_tokens', 0)} tokens"
    return " · ".join([tokens, *stages])


def _source(text: str) -> str | Path:
    if text != "-":
        return text
    if sys.stdin.isatty():
        raise failed("- reads a video from standard input: pipe one in, `cat clip.mp4 | internvideo chat - 'What happens?'`")
    return "data:video/mp4;base64," + base64.b64encode(sys.stdin.buffer.read()).decode()


def _plain_line() -> str | None:
    line = sys.stdin.readline()
    return line.strip() if line else None


def _reader() -> Callable[[], str | None]:
    """What reads a line: with history and completion of paths on a terminal, plainly elsewhere. None at the end of the input."""
    if not sys.stdin.isatty():
        return _plain_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import PathCompleter
    from prompt_toolkit.history import FileHistory

    file, history = Path.home() / ".cache" / "internvideo" / "chat-history", None
    with contextlib.suppress(OSError):  # a home that is not ours to write: history of this conversation alone
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        history = FileHistory(file)
    session: PromptSession[str] = PromptSession(history=history, completer=PathCompleter(expanduser=True))

    def read() -> str | None:
        try:
            return session.prompt("> ").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            return ""

    return read
