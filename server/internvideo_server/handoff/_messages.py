"""What the two models say over the socket: small typed messages, one datagram of JSON each; descriptors travel beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from internvideo_server.errors import ErrorCode

_BINARY = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True)
class HoldEmbeddings:
    """Hold those of the embeddings that are there. Answered by `Held`.

    Attributes:
        reservation: Its id, unique.
        request_id: Triton's, by which the request may be stopped.
        deadline: Of the request, in seconds of ``time.monotonic()``, which all processes of a host share.
        keys: Of the embeddings.
    """

    __pydantic_config__ = _BINARY
    reservation: int
    request_id: str
    deadline: float
    keys: tuple[bytes, ...]
    kind: Literal["hold embeddings"] = "hold embeddings"


@dataclass(frozen=True)
class Fault:
    """Why a medium's frames did not all come.

    Attributes:
        code: Of the error.
        message: For the client.
        param: The field at fault, relative to the medium's.
    """

    code: ErrorCode
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Ending:
    """Of a medium's decoding.

    Attributes:
        damaged_frames: How many of the frames show damage.
        seconds: It took, for who was the first to want it.
        fault: None: all frames are there.
    """

    damaged_frames: int = 0
    seconds: float = 0.0
    fault: Fault | None = None


@dataclass(frozen=True)
class FramePart:
    """A medium's frames in the memory of one descriptor, which has room for all of them; they may still be decoded.

    Attributes:
        key: Of the medium's frames.
        frame_count: T, of the whole medium.
        stream: Number of this decoding, by which `MoreFrames` tells of the rest.
        groups: Numbers of the groups of 4 frames that are whole.
        ending: None: it goes on.
        param: The request's field that holds the medium.
        frees: Nobody else wants the frames: each may be let go once it is used.
    """

    __pydantic_config__ = _BINARY
    key: bytes
    frame_count: Annotated[int, Field(ge=1)]
    stream: int
    groups: tuple[int, ...] = ()
    ending: Ending | None = None
    param: str | None = None
    frees: bool = False


@dataclass(frozen=True)
class HoldFrames:
    """Hold these frames; a descriptor for each part comes with the message. Answered by `Held`.

    Attributes:
        reservation: As for `HoldEmbeddings`; the two share it.
        request_id: Likewise.
        deadline: Likewise.
        parts: In the order of the descriptors.
    """

    reservation: int
    request_id: str
    deadline: float
    parts: tuple[FramePart, ...]
    kind: Literal["hold frames"] = "hold frames"


@dataclass(frozen=True)
class MoreFrames:
    """More of a stream is there, or it has ended. Answered by `Held`, whose ``wanted`` is false where nobody knows the stream.

    Attributes:
        stream: Its number.
        groups: That became whole; some may have been told before.
        ending: None: it goes on.
    """

    stream: int
    groups: tuple[int, ...] = ()
    ending: Ending | None = None
    kind: Literal["more frames"] = "more frames"


@dataclass(frozen=True)
class Release:
    """Let go of a reservation: its request will not come. Answered by `Held`, of nothing."""

    reservation: int
    kind: Literal["release"] = "release"


@dataclass(frozen=True)
class Held:
    """The answer to all.

    Attributes:
        keys: Of what is held by the message.
        wanted: Whether a request waits for the stream.
        used: How many of the stream's frames are not read again.
    """

    __pydantic_config__ = _BINARY
    keys: tuple[bytes, ...] = ()
    wanted: bool = True
    used: int = 0


Question = HoldEmbeddings | HoldFrames | MoreFrames | Release
QUESTIONS: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])
ANSWERS: TypeAdapter[Held] = TypeAdapter(Held)
