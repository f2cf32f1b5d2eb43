"""OpenAI chat messages: from JSON to a checked conversation.

Each object is validated by its own small model, picked by hand from its ``type`` or ``role``: an error then names the
exact field (``messages.0.content.1.video_url.num_frames``), which pydantic's unions cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from internvideo_server.errors import ServingError, invalid

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["video", "image"]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SHOWN = 40  # characters of a client's own value that a message quotes


@dataclass(frozen=True)
class MediaPart:
    """One video or image, as asked for; ``start`` and ``end`` in seconds, ``fps`` in frames per second of the video."""

    kind: MediaKind
    url: str
    num_frames: int | None
    fps: float | None
    start: float | None
    end: float | None
    param: str  # where it stands in the request, "messages.0.content.1.video_url", for errors about it


@dataclass(frozen=True)
class Message:
    """One turn: its text parts joined by newlines, and its media, each in order of appearance."""

    role: Role
    text: str
    media: tuple[MediaPart, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The whole request's messages, oldest first."""

    messages: tuple[Message, ...]

    @property
    def media(self) -> list[MediaPart]:
        """All media in order of appearance."""
        return [part for message in self.messages for part in message.media]


def parse_messages(raw: str | bytes) -> Conversation:
    """Read and check the JSON list of chat messages.

    Args:
        raw: The ``messages`` value of an OpenAI chat request, as JSON (UTF-8 if bytes).

    Raises:
        ServingError: INVALID_ARGUMENT, with the field at fault as ``param``.
    """
    try:
        document = from_json(raw.encode() if isinstance(raw, str) else raw, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"messages must be a JSON list of chat messages: {error}", "messages") from error
    if not isinstance(document, list) or not document:
        raise invalid("messages must be a list with at least one message", "messages")
    messages = tuple(_message(value, f"messages.{i}") for i, value in enumerate(document))
    if all(message.role != "user" for message in messages):
        raise invalid("messages must contain a message with role 'user'", "messages")
    return Conversation(messages)


def _message(value: Any, param: str) -> Message:
    message = _checked(_Message, value, param)
    role = ROLES.get(message.role)
    if role is None:
        raise invalid(f"role {_shown(message.role)} is not one of {_listed(ROLES)}", f"{param}.role")
    if message.tool_calls or message.function_call:
        raise invalid("tool calls are not supported", f"{param}.{'tool_calls' if message.tool_calls else 'function_call'}")
    content_param = f"{param}.content"
    content = message.content
    if content is None and role == "assistant":  # what OpenAI's SDK writes for an answer without text
        content = ""
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list) or not content:
        raise invalid("content must be a string or a list with at least one part", content_param)
    parts = [_part(part, f"{content_param}.{i}") for i, part in enumerate(content)]
    media = tuple(part for part in parts if isinstance(part, MediaPart))
    if media and role != "user":
        raise invalid("videos and images are allowed in user messages only", media[0].param)
    return Message(role, "\n".join(part for part in parts if isinstance(part, str)), media)


def _part(value: Any, param: str) -> str | MediaPart:
    kind = _checked(_Typed, value, param).type
    if kind == "text":
        return _checked(_TextPart, value, param).text
    if kind == "video_url":
        video = _checked(_VideoPart, value, param).video_url
        if video.num_frames is not None and video.fps is not None:
            raise invalid("num_frames and fps exclude each other: give one", f"{param}.video_url.fps")
        return MediaPart("video", video.url, video.num_frames, video.fps, video.start, video.end, f"{param}.video_url")
    if kind == "image_url":
        image = _checked(_ImagePart, value, param).image_url
        return MediaPart("image", image.url, None, None, None, None, f"{param}.image_url")
    raise invalid(f"type {_shown(kind)} is not one of 'text', 'video_url', 'image_url'", f"{param}.type")


class _Message(BaseModel):
    """``name``, ``refusal``, ``annotations`` and the like come back with an SDK's own messages: they change nothing."""

    role: StrictStr
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Typed(BaseModel):
    type: StrictStr


class _TextPart(BaseModel):
    text: StrictStr


class _VideoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: Annotated[StrictStr, Field(min_length=1)]
    num_frames: StrictInt | None = None
    fps: PerSecond | None = None
    start: Seconds | None = None
    end: Seconds | None = None


class _VideoPart(BaseModel):
    model_config = ConfigDict(extra="forbid")  # an option beside `video_url` instead of in it must not be lost in silence

    type: str
    video_url: _VideoOptions


class _ImageOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: Annotated[StrictStr, Field(min_length=1)]
    detail: Any = None  # OpenAI's hint for tiling; this model sees every image at one size


class _ImagePart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: str
    image_url: _ImageOptions


ModelT = TypeVar("ModelT", bound=BaseModel)


def _checked(model: type[ModelT], value: Any, param: str) -> ModelT:
    if not isinstance(value, dict):
        raise invalid(f"must be an object, got {_json_type(value)}", param)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _translated(error, param) from error


def _translated(error: ValidationError, param: str) -> ServingError:
    """The first fault as a coded error. Unknown keys are the client's own text: they go into the message, not the param."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    *parents, name = [str(step) for step in fault["loc"]]
    owner, field = ".".join([param, *parents]), ".".join([param, *parents, name])
    match fault["type"]:
        case "extra_forbidden":
            inside = "" if parents else " (options stand inside video_url or image_url)"
            return invalid(f"unknown key {_shown(name)}{inside}", owner)
        case "missing":
            return invalid(f"{name} is missing", field)
        case "model_type":
            return invalid(f"{name} must be an object", field)
    return invalid(f"{name}: {fault['msg']}", field)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def _listed(names: dict[str, Role]) -> str:
    return ", ".join(repr(name) for name in names)


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
