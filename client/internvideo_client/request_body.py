"""Bodies of requests that carry videos: JSON into which local files are encoded while it is sent, never held whole."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Told while a body is sent: bytes so far, and of how many.
OnUpload = Callable[[int, int], None]

_CHUNK_BYTES = 768 * 1024  # of a file at once; a multiple of 3, so that the pieces' base64 joins without padding


@dataclass(frozen=True)
class LocalFile:
    """Stands for a string of a request: the file as a ``data:`` URL of the given type."""

    path: Path
    mime: str

    def __str__(self) -> str:
        """Its URL, for who keeps the request and not the file."""
        return self.path.absolute().as_uri()


class JsonBody:
    """The body of one request.

    Args:
        document: What is sent, with `LocalFile` in the place of strings.

    Raises:
        OSError: A file cannot be read.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        mark, files = secrets.token_hex(16), []

        def place(file: LocalFile) -> str:
            files.append(file)
            return f"{mark}{file.mime};base64,{mark}"

        text = json.dumps(document, default=place)
        # JSON is cut at the marks: text, head of a data: URL, text, head, ...
        pieces = [piece.encode() for piece in text.split(mark)]
        self._pieces: list[bytes | Path] = [pieces[0]]
        for file, head, rest in zip(files, pieces[1::2], pieces[2::2], strict=True):
            self._pieces += [b"data:" + head, file.path, rest]
        #: Bytes of the whole.
        self.size = sum(len(piece) if isinstance(piece, bytes) else _encoded_size(piece) for piece in self._pieces)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return {"Content-Type": "application/json", "Content-Length": str(self.size)}

    def pieces(self, on_upload: OnUpload | None = None) -> Iterator[bytes]:
        """The body, for a client that takes an iterator and asks for the next piece when one is sent."""
        sent = 0
        for piece in self._read():
            yield piece
            sent += len(piece)
            if on_upload is not None:
                on_upload(sent, self.size)

    async def pieces_async(self, on_upload: OnUpload | None = None) -> AsyncIterator[bytes]:
        """The same for an asynchronous client."""
        for data in self.pieces(on_upload):  # local reads, short beside the sending
            yield data

    def _read(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            with piece.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    yield base64.b64encode(data)


def _encoded_size(path: Path) -> int:
    with path.open("rb"):  # that it can be read is known before the request has begun
        return (path.stat().st_size + 2) // 3 * 4
