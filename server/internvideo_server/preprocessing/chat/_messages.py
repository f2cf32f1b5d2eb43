"""OpenAI chat messages: from JSON to a checked conversation.

Each object is validated by its own small model, picked by hand from its ``type`` or ``role``: an error then names the
exact field (``messages.0.content.1.video_url.num_frames``), which pydantic's unions cannot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from internvideo_server.errors import ServingError, invalid

Role = Literal["system", "user", "assistant", "environment"]
MediaKind = Literal["video", "image"]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Moment = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # below 0: from the end
PerSecond = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROLES |= {"tool": "environment", "function": "environment"}  # InternLM2's name of what a function answered
IMAGE_FRAMES_THRESHOLD = 8
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
    pictures: tuple[MediaPart, ...] = ()  # of a video that came as images, one for each frame; then there is no url
    way: Literal["frame", "image"] | None = None  # what the request says of an image
    max_frames: int | None = None  # beside ``fps`` or ``by_duration``
    by_duration: bool = False  # the original's number of frames for the video's length


@dataclass(frozen=True)
class Message:
    """One turn: its text parts joined by newlines, its media, each in order of appearance, and the calls that it made as JSON.

    Attributes:
        order: The parts as they were written, ``None`` for each medium, where the order means something: in a message with
            several texts between its media. Empty: all media first, as the original writes them.
    """

    role: Role
    text: str
    media: tuple[MediaPart, ...] = ()
    calls: tuple[str, ...] = ()
    order: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The whole request's messages, oldest first; or a bare prompt, text or token ids, that the model goes on with."""

    messages: tuple[Message, ...]
    prompt: str | tuple[int, ...] | None = None

    @property
    def media(self) -> list[MediaPart]:
        """All media in order of appearance."""
        return [part for message in self.messages for part in message.media]


def parse_messages(raw: str | bytes, image_frames_threshold: int = IMAGE_FRAMES_THRESHOLD) -> Conversation:
    """Read and check the JSON list of chat messages.

    Args:
        raw: The ``messages`` value of an OpenAI chat request, as JSON (UTF-8 if bytes); or ``{"prompt": TEXT}`` or
            ``{"prompt_token_ids": [...]}``.
        image_frames_threshold: So many images in a row are images; more of them are the frames of one video.

    Raises:
        ServingError: INVALID_ARGUMENT, with the field at fault as ``param``.
    """
    try:
        document = from_json(raw.encode() if isinstance(raw, str) else raw, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"messages must be a JSON list of chat messages: {error}", "messages") from error
    if isinstance(document, dict) and document.keys() & {"prompt", "prompt_token_ids"}:
        return Conversation((), _prompt(document))
    if not isinstance(document, list) or not document:
        raise invalid("messages must be a list with at least one message", "messages")
    messages = tuple(_message(value, f"messages.{i}", image_frames_threshold) for i, value in enumerate(document))
    if all(message.role != "user" for message in messages):
        raise invalid("messages must contain a message with role 'user'", "messages")
    return Conversation(messages)


def _message(value: Any, param: str, threshold: int) -> Message:
    message = _checked(_Message, value, param)
    role = ROLES.get(message.role)
    if role is None:
        raise invalid(f"role {_shown(message.role)} is not one of {_listed(ROLES)}", f"{param}.role")
    calls = tuple(_calls(message, param))
    if calls and role != "assistant":
        raise invalid("calls of functions are allowed in assistant messages only", f"{param}.tool_calls")
    content_param = f"{param}.content"
    content = message.content
    if content is None:  # what OpenAI's SDK writes for an answer without text
        content = ""
    if isinstance(content, str):
        return Message(role, content, (), calls)
    if not isinstance(content, list):
        raise invalid("content must be a string or a list of parts", content_param)
    parts = list(_grouped([_part(part, f"{content_param}.{i}") for i, part in enumerate(content)], threshold))
    media = tuple(part for part in parts if isinstance(part, MediaPart))
    if media and role != "user":
        raise invalid("videos and images are allowed in user messages only", media[0].param)
    texts = [part for part in parts if isinstance(part, str)]
    order = tuple(part if isinstance(part, str) else None for part in parts) if media and len(texts) > 1 else ()
    return Message(role, "\n".join(texts), media, calls, order)


def _grouped(parts: list[str | MediaPart], threshold: int) -> Iterator[str | MediaPart]:
    """Images in a row that are meant as frames become one video."""
    for (kind, way), run in groupby(parts, lambda part: ("", None) if isinstance(part, str) else (part.kind, part.way)):
        found = list(run)
        pictures = tuple(part for part in found if isinstance(part, MediaPart))
        if kind == "image" and (way == "frame" or (way is None and len(pictures) > threshold)):
            yield MediaPart("video", "", None, None, None, None, pictures[0].param, pictures)
        else:
            yield from found


def _prompt(document: dict[str, Any]) -> str | tuple[int, ...]:
    text, ids = document.get("prompt"), document.get("prompt_token_ids")
    if isinstance(text, str):
        return text
    if isinstance(ids, list) and ids and all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        return tuple(ids)
    raise invalid("a prompt must be a text or a list of token ids", "prompt")


def _calls(message: _Message, param: str) -> Iterator[str]:
    """Each call as InternLM2 writes it."""
    asked = message.tool_calls or []
    if not isinstance(asked, list):
        raise invalid("tool_calls must be a list", f"{param}.tool_calls")
    places = [(call, f"{param}.tool_calls.{i}") for i, call in enumerate(asked)]
    if message.function_call:
        places.append(({"function": message.function_call}, f"{param}.function_call"))
    for call, place in places:
        function = _checked(_Function, _checked(_Call, call, place).function, f"{place}.function")
        try:
            arguments = json.loads(function.arguments) if isinstance(function.arguments, str) else function.arguments
        except (ValueError, RecursionError):  # as the model wrote it
            arguments = function.arguments
        yield json.dumps({"name": function.name, "parameters": arguments}, ensure_ascii=False)


def _part(value: Any, param: str) -> str | MediaPart:
    kind = _checked(_Typed, value, param).type
    if kind == "text":
        return _checked(_TextPart, value, param).text
    if kind == "video_url":
        given = value.get("video_url")
        auto = isinstance(given, dict) and given.get("num_frames") == "auto"  # a union's fault would have another field's name
        value = {**value, "video_url": {**given, "num_frames": None}} if auto else value
        video = _checked(_VideoPart, value, param).video_url
        if video.num_frames is not None and video.fps is not None:
            raise invalid("num_frames and fps exclude each other: give one", f"{param}.video_url.fps")
        return MediaPart(
            "video",
            video.url,
            video.num_frames,
            video.fps,
            video.start,
            video.end,
            f"{param}.video_url",
            max_frames=video.max_frames,
            by_duration=auto,
        )
    if kind == "image_url":
        part = _checked(_ImagePart, value, param)
        return MediaPart("image", part.image_url.url, None, None, None, None, f"{param}.image_url", way=part.way)
    raise invalid(f"type {_shown(kind)} is not one of 'text', 'video_url', 'image_url'", f"{param}.type")


class _Message(BaseModel):
    """``name``, ``refusal``, ``annotations`` and the like come back with an SDK's own messages: they change nothing."""

    role: StrictStr
    content: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Call(BaseModel):
    function: Any = None


class _Function(BaseModel):
    name: StrictStr
    arguments: Any = None


class _Typed(BaseModel):
    type: StrictStr


class _TextPart(BaseModel):
    text: StrictStr


class _VideoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: Annotated[StrictStr, Field(min_length=1)]
    num_frames: StrictInt | None = None
    max_frames: StrictInt | None = None
    fps: PerSecond | None = None
    start: Moment | None = None
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
    way: Literal["frame", "image"] | None = Field(None, alias="as")


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
