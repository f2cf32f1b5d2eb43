"""The frames that a question about a medium would see, as small pictures for people."""

from __future__ import annotations

import base64
import io
import json

from PIL import Image

from internvideo_server.deadline import Deadline
from internvideo_server.errors import invalid
from internvideo_server.frame_buffer import FrameBuffer

from .attachments import Attachments
from .chat import parse_messages
from .pipeline import Preprocessor
from .video import DecodeRequest, FrameDecoder

_SIDE, _QUALITY = 224, 80


def preview(prepare: Preprocessor, decoder: FrameDecoder, messages: bytes, attachments: Attachments, deadline: Deadline) -> bytes:
    """Decode the one medium of a conversation.

    Args:
        prepare: Opens media, by the server's limits.
        decoder: Decodes them; nothing is kept.
        messages: JSON list of OpenAI chat messages.
        attachments: Media that came as bytes.
        deadline: Ends the work early.

    Returns:
        JSON list of ``{"time": seconds, "index": frame of the video, "image": data: URL of a JPEG}``.

    Raises:
        ServingError: With the field at fault.
    """
    media = parse_messages(messages, prepare.image_frames_threshold).media
    if len(media) != 1:
        raise invalid(f"one medium is previewed at once, there are {len(media)}", "messages")
    (part,) = media
    sampling = prepare.sampling(part)
    with prepare.open(part, attachments, deadline) as medium, FrameBuffer() as buffer:
        decoded = decoder.decode(medium.fd, DecodeRequest(part.kind, sampling, part.param), buffer, deadline)
        frames = buffer.frames()
        seconds = decoded.seconds or [0.0] * len(decoded.indices)
        found = [
            {"time": round(time, 3), "index": index, "image": _picture(Image.fromarray(frame.transpose(1, 2, 0)))}
            for time, index, frame in zip(seconds, decoded.indices, frames, strict=True)
        ]
    return json.dumps(found).encode()


def _picture(frame: Image.Image) -> str:
    out = io.BytesIO()
    frame.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR).save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
