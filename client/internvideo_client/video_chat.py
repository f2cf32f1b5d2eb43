"""Asking about videos from Python: :class:`VideoChat`, and :class:`AsyncVideoChat` for asyncio.

::

    from internvideo_client import VideoChat

    chat = VideoChat("http://127.0.0.1:9997")
    print(chat.ask("clip.mp4", "What happens?", num_frames=16).text)
    for text in chat.ask(None, "And then?", stream=True):   # goes on about the same video
        print(text, end="")

A ``grpc://`` address asks Triton itself, without the adapter::

    chat = VideoChat("grpc://127.0.0.1:8001", engine="ENGINE_DIRECTORY", secret_file="RUN_DIRECTORY/triton_secret")
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from .errors import ApiError
from .grpc_chat import SCHEME, TritonServer
from .http_chat import DEFAULT_URL, MODEL_ID, Part, Server, media_part
from .request_body import OnUpload

#: A URL, a path, or several of them.
Video = str | Path | Sequence[str | Path] | None
AnyServer = Server | TritonServer
_SAMPLING = ("num_frames", "fps", "start", "end", "max_frames")


@dataclass
class ChatAnswer:
    """An answer; iterate over a streamed one for its text as it comes.

    Attributes:
        text: What came so far.
        finish_reason: ``stop`` or ``length``, once it has ended.
        usage: Token counts of the request (OpenAI's ``usage``).
    """

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def timings(self) -> dict[str, Any]:
        """Where the time went, in milliseconds, and what of the video was cached (``usage.internvideo``)."""
        return self.usage.get("internvideo") or {}

    def _add(self, part: Part) -> str:
        self.text += part.text
        self.finish_reason = part.finish_reason or self.finish_reason
        self.usage = part.usage or self.usage
        return part.text


def _server(
    url: str,
    api_key: str | None,
    model: str,
    engine: str | Path | None,
    secret_file: str | Path | None,
    on_upload: OnUpload | None,
) -> AnyServer:
    if not url.startswith(SCHEME):
        return Server(url, api_key, model, on_upload)
    if engine is None:
        raise ApiError(400, f"{url}: Triton tells token ids: give engine=DIR, the engine directory with its tokenizer.json")
    return TritonServer(url, Path(engine), None if secret_file is None else Path(secret_file))


class _Conversation:
    """The messages so far; the same media at the same places in each turn, so that the server's caches know them."""

    def __init__(self, server: AnyServer, system: str | None) -> None:
        self.server = server
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []

    def asked(self, videos: Video, question: str, options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages with a new question, and the other fields of the request."""
        sampling = {name: options.pop(name) for name in _SAMPLING if options.get(name) is not None}
        sources = [] if videos is None else [videos] if isinstance(videos, (str, Path)) else list(videos)
        content = [media_part(source, sampling) for source in sources]
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        return [*self.messages, message], {name: value for name, value in options.items() if value is not None}

    def answered(self, messages: list[dict[str, Any]], answer: ChatAnswer) -> None:
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]


class _Chat:
    """What `VideoChat` and `AsyncVideoChat` share."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        model: str = MODEL_ID,
        system: str | None = None,
        engine: str | Path | None = None,
        secret_file: str | Path | None = None,
        on_upload: OnUpload | None = None,
    ) -> None:
        self._conversation = _Conversation(_server(url, api_key, model, engine, secret_file, on_upload), system)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """OpenAI's messages of the conversation so far."""
        return self._conversation.messages


class VideoChat(_Chat):
    """A conversation about videos.

    Args:
        url: The server's OpenAI API, or ``grpc://HOST:PORT`` of Triton.
        api_key: Where the server wants one.
        model: Id to ask for.
        system: System prompt; None: the model's own.
        engine: For Triton: the engine directory, whose ``tokenizer.json`` makes text of its token ids.
        secret_file: For Triton: ``triton_secret`` of the run's directory. With it, on the same machine, local files go by shared
            memory; else their bytes are sent.
        on_upload: Called while a question is sent over HTTP, with its bytes so far and in all.

    Raises:
        ApiError: The URL has no scheme or is not a URL, or Triton's lacks ``engine``.
        OSError, ValueError: The engine directory cannot be read.
    """

    @overload
    def ask(self, video: Video, question: str, *, stream: Literal[False] = False, **options: Any) -> ChatAnswer: ...
    @overload
    def ask(self, video: Video, question: str, *, stream: Literal[True], **options: Any) -> StreamedAnswer: ...
    def ask(self, video: Video, question: str, *, stream: bool = False, **options: Any) -> ChatAnswer | StreamedAnswer:
        """Ask a question.

        Args:
            video: A local file, which is sent along, a URL, which the server fetches, several of them, or None to go on about
                what was shown before.
            question: In any language.
            stream: Whether to give the text as it comes.
            options: Of the video ``num_frames``, ``fps``, ``start``, ``end``, ``max_frames``; of the answer any field of OpenAI's
                request (``max_tokens``, ``temperature``, ``seed``, ...).

        Raises:
            ApiError: The server refused the request or failed, nothing answers there, or the answer was cut off.
            OSError: A local file cannot be read.
        """
        answer = StreamedAnswer(self._conversation, video, question, options)
        if stream:
            return answer
        for _ in answer:
            pass
        return answer


class StreamedAnswer(ChatAnswer):
    """An answer that is asked for when it is iterated over."""

    def __init__(self, conversation: _Conversation, video: Video, question: str, options: dict[str, Any]) -> None:
        super().__init__()
        self._conversation = conversation
        self._messages, self._settings = conversation.asked(video, question, options)

    def __iter__(self) -> Iterator[str]:
        for part in self._conversation.server.stream(self._messages, self._settings):
            if text := self._add(part):
                yield text
        self._conversation.answered(self._messages, self)


class AsyncVideoChat(_Chat):
    """As :class:`VideoChat`, for asyncio."""

    async def ask(self, video: Video, question: str, **options: Any) -> ChatAnswer:
        """Ask a question and wait for the whole answer. Arguments and errors are :meth:`VideoChat.ask`'s."""
        answer = self.stream(video, question, **options)
        async for _ in answer:
            pass
        return answer

    def stream(self, video: Video, question: str, **options: Any) -> AsyncStreamedAnswer:
        """Ask a question; iterate for the text as it comes."""
        return AsyncStreamedAnswer(self._conversation, video, question, options)


class AsyncStreamedAnswer(ChatAnswer):
    """An answer that is asked for when it is iterated over."""

    def __init__(self, conversation: _Conversation, video: Video, question: str, options: dict[str, Any]) -> None:
        super().__init__()
        self._conversation = conversation
        self._messages, self._settings = conversation.asked(video, question, options)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts()

    async def _texts(self) -> AsyncGenerator[str]:
        async for part in self._conversation.server.stream_async(self._messages, self._settings):
            if text := self._add(part):
                yield text
        self._conversation.answered(self._messages, self)
