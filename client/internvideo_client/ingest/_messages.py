"""The shapes in which clients write media, brought into one: vLLM's, Qwen's and OpenAI's to ``video_url`` and ``image_url``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from internvideo_client.errors import bad_request

_GROUP = 4  # frames that the tower merges
_HINTS = ("uuid", "cache_control", "detail", "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
_OPTIONS = ("num_frames", "nframes", "fps", "start", "end", "video_start", "video_end", "max_frames", "min_frames")
_NUMBERS = ("num_frames", "max_frames", "fps", "start", "end")
_RENAMED = {"nframes": "num_frames", "video_start": "start", "video_end": "end"}
_KINDS = {
    "video_url": "video_url",
    "video": "video_url",
    "input_video": "video_url",
    "image_url": "image_url",
    "image": "image_url",
    "input_image": "image_url",
}
_RATES_OF_A_LIST = ("fps", "sample_fps", "raw_fps")  # at which its pictures were taken: the prompt has no times of pictures
_IMAGE_DEFAULTS = {"image_mode": "RGB", "rgba_background_color": [255, 255, 255]}
_TEXTS = ("text", "input_text", "output_text", "refusal")


@dataclass(frozen=True)
class SamplingDefaults:
    """Frames of the videos that say nothing themselves.

    Attributes:
        num_frames: None: the server's.
        fps: Frames a second of the video; None: `num_frames`.
    """

    num_frames: Any = None
    fps: Any = None

    @classmethod
    def of(cls, media_io: Mapping[str, Any] | None, processor: Mapping[str, Any] | None) -> SamplingDefaults:
        """From vLLM's ``media_io_kwargs`` and ``mm_processor_kwargs``; the first wins.

        Raises:
            ApiError: An option that is not known, which would be lost in silence.
        """
        given = _rate(_video_of(media_io or {}), "media_io_kwargs.video")
        given = given or _rate(processor or {}, "mm_processor_kwargs")
        return cls(given.get("num_frames"), given.get("fps"))


def _rate(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``num_frames`` or ``fps`` of vLLM's options; empty where they say neither."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key in _HINTS or value in (None, {}, [], False) or (key == "do_sample_frames" and value is True):
            continue
        key = _RENAMED.get(key, key)
        if key not in ("num_frames", "fps"):
            raise bad_request(f"{name}: {key[:40]!r} is not known here: num_frames and fps are", name)
        found[key] = value
    found = _one_rate(found)
    if len(found) > 1:
        raise bad_request(f"{name}: num_frames and fps exclude each other: give one", f"{name}.fps")
    return found


def _one_rate(options: dict[str, Any]) -> dict[str, Any]:
    """Without vLLM's words for none: ``fps: -1``, 0 and less beside ``num_frames``; ``num_frames: -1`` beside ``fps``."""
    fps = options.get("fps")
    if fps == -1 or (isinstance(fps, int | float) and fps <= 0 and "num_frames" in options):
        return {key: value for key, value in options.items() if key != "fps"}
    if fps is not None and options.get("num_frames") == -1:
        return {key: value for key, value in options.items() if key != "num_frames"}
    return options


def _video_of(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for kind, value in options.items():
        if kind not in ("video", "image") and value:
            raise bad_request(f"media_io_kwargs: there is no {kind[:40]!r} here, only video", "media_io_kwargs")
        if value is not None and not isinstance(value, Mapping):
            raise bad_request(f"media_io_kwargs.{kind}: must be an object", f"media_io_kwargs.{kind}")
    for key, value in (options.get("image") or {}).items():
        if value is not None and _IMAGE_DEFAULTS.get(key) != value:
            name = f"media_io_kwargs.image.{key[:40]}"
            raise bad_request(f"{name}: an image is RGB on white here, and has no options", name)
    return options.get("video") or {}


def normal_messages(
    messages: list[dict[str, Any]], defaults: SamplingDefaults, max_frames: int, name: str = "messages"
) -> list[dict[str, Any]]:
    """The messages with every medium as an object with its URL and options; what is not a known shape is left to preprocessing.

    Args:
        messages: Of the request.
        defaults: For videos without options of their own.
        max_frames: What ``num_frames: -1`` means.
        name: Of the list, for errors.

    Raises:
        ApiError: Options that cannot be meant.
    """
    return [
        {**message, "content": list(_parts(content, defaults, max_frames, f"{name}.{i}.content"))}
        if isinstance(content := message.get("content"), list)
        else message
        for i, message in enumerate(messages)
    ]


def _parts(content: list[Any], defaults: SamplingDefaults, max_frames: int, param: str) -> Iterator[Any]:
    for number, part in enumerate(content):
        if isinstance(part, dict) and (frames := _frame_list(part)) is not None:
            yield from _pictures(part, frames, f"{param}.{number}")
        else:
            yield _part(part, defaults, max_frames, f"{param}.{number}")


def _frame_list(part: dict[str, Any]) -> list[Any] | None:
    """Qwen's list of pictures as a video."""
    if part.get("type", "video") not in ("video", "video_url", "input_video"):
        return None
    return next((part[key] for key in ("video", "video_url", "input_video") if isinstance(part.get(key), list)), None)


def _pictures(part: dict[str, Any], frames: list[Any], param: str) -> Iterator[dict[str, Any]]:
    strange = part.keys() - {"type", "video", "video_url", "input_video", *_HINTS, *_RATES_OF_A_LIST}
    if strange or not frames or not all(isinstance(frame, str) for frame in frames):
        message = "a list of frames holds URLs of pictures, all of which are seen: it has no options"
        raise bad_request(message, f"{param}.video")
    for url in frames:
        yield {"type": "image_url", "image_url": {"url": url}, "as": "frame"}


def _part(part: Any, defaults: SamplingDefaults, max_frames: int, param: str) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind is None:
        kind = next((key for key in (*_KINDS, "text") if key in part), None)
    if kind in ("file", "input_file"):
        return _part(_as_video(part), defaults, max_frames, param)
    if kind in _TEXTS:
        # An answer's refusal, given back in the history, is what the assistant said.
        return {"type": "text", "text": part.get("text", part.get("refusal", ""))}
    if kind not in _KINDS:
        return part
    target = _KINDS[kind]
    own = next((part[key] for key in (kind, target, "url") if part.get(key) is not None), None)
    if own is None and (file := part.get("file_id")) is not None:
        own = f"file-id:{file}"
    inner = dict(own) if isinstance(own, dict) else {"url": own}
    beside = {key: value for key, value in part.items() if key in _OPTIONS}
    unknown = {key: value for key, value in part.items() if key not in _known(kind, target)}
    medium = _merged(beside, inner, f"{param}.{target}")
    if target == "image_url":
        medium = {key: value for key, value in medium.items() if key not in _OPTIONS}
        if inner.get("detail") is not None:
            medium["detail"] = inner["detail"]
    else:
        medium = _sampling(medium, defaults, max_frames, f"{param}.video_url")
    return {"type": target, target: medium, **unknown}


def _merged(beside: dict[str, Any], inner: dict[str, Any], param: str) -> dict[str, Any]:
    """The options that stand beside the URL and with it, by one name each."""
    found: dict[str, Any] = {}
    for key, value in [*beside.items(), *inner.items()]:
        name = _RENAMED.get(key, key)
        if value is None or key in _HINTS:
            continue
        if found.setdefault(name, value) != value:
            raise bad_request(f"{name} is given twice, as {found[name]!r} and {value!r}"[:200], f"{param}.{name}")
    return found


def _number(value: Any) -> Any:
    """``"8"``, ``"8.0"`` and ``8.0`` as 8; what is no number as it is."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _as_video(part: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's file parts: what they hold can only be a video here."""
    file = part["file"] if isinstance(part.get("file"), dict) else part
    url = file.get("file_data") or file.get("file_url")
    if url is None and file.get("file_id") is not None:
        url = f"file-id:{file['file_id']}"
    return {"type": "video_url", "video_url": url}


def _known(kind: str, target: str) -> frozenset[str]:
    return frozenset(("type", kind, target, "url", "file_id", *_OPTIONS, *_HINTS))


def _sampling(video: dict[str, Any], defaults: SamplingDefaults, max_frames: int, param: str) -> dict[str, Any]:
    video |= {key: _number(video[key]) for key in _NUMBERS if key in video}
    most, fewest = video.pop("max_frames", None), video.pop("min_frames", None)
    if "num_frames" not in video and "fps" not in video:
        given = {"num_frames": defaults.num_frames, "fps": defaults.fps}
        video |= {key: value for key, value in given.items() if value is not None}
    video = _one_rate(video)
    if most is not None and video.get("num_frames") is None and video.get("fps") is None:
        video["num_frames"] = most
    elif most is not None and (video.get("num_frames") in (None, "auto")) and fewest is None:
        video["max_frames"] = most
    elif most is not None or fewest is not None:
        raise bad_request("max_frames is for fps, and min_frames is not known: give num_frames, or fps with max_frames", param)
    frames = _number(video.get("num_frames"))
    if isinstance(frames, int) and not isinstance(frames, bool):
        if frames == -1:
            frames = max_frames
        video["num_frames"] = -(-frames // _GROUP) * _GROUP if frames > 0 else frames
    return video
