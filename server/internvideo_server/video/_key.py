"""The name of a medium's frames, known before it is decoded."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version

from internvideo_server.video._request import DecodeLimits, DecodeRequest

# Raise it with every change that gives other frames for the same file and request.
_PREPROCESSING_VERSION = 1
_LIBRARIES = ("av", "decord", "pillow")


def frames_key(digest: bytes, request: DecodeRequest, limits: DecodeLimits) -> bytes:
    """Equal keys mean equal frames.

    Args:
        digest: SHA-256 of the medium's content.
        request: What is asked of the decoder.
        limits: The decoder's; the defaults among them take part in sampling.

    Returns:
        32 bytes.
    """
    sampling = request.sampling
    plan = {
        "version": [_PREPROCESSING_VERSION, *_versions()],
        "content": digest.hex(),
        "kind": request.kind,
        "reader": limits.reader.replace("auto", "pyav"),
        "num_frames": None if sampling.fps else sampling.num_frames or limits.default_frames,
        "fps": sampling.fps and [sampling.fps, limits.max_frames],
        "range": [sampling.start or 0.0, sampling.end],
    }
    if request.kind == "image":
        plan = {name: plan[name] for name in ("version", "content", "kind")}
    return hashlib.sha256(json.dumps(plan).encode()).digest()


@cache
def _versions() -> list[str]:
    return [version(library) for library in _LIBRARIES]  # read from files: milliseconds


def extra_id(key: bytes) -> int:
    """The 64 bits >= 1 by which the engine tells media apart (``prompt_table_extra_ids``)."""
    return int.from_bytes(key[:8], "little") or 1
