"""The name of a medium's frames, known before it is decoded."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version

from ._request import DecodeLimits, DecodeRequest

# Raise it with every change that gives other frames for the same file and request.
_PREPROCESSING_VERSION = 5


def frames_key(digest: bytes, request: DecodeRequest, limits: DecodeLimits) -> bytes:
    """Equal keys mean equal frames.

    Args:
        digest: SHA-256 of the medium's content.
        request: What is asked of the decoder.
        limits: The decoder's; the defaults among them take part in sampling.

    Returns:
        32 bytes.
    """
    sampling, reader = request.sampling, limits.reader.replace("auto", "pyav")
    # av reads every header, whatever decodes.
    libraries = ["av", "pillow", *(["decord"] if reader == "decord" else [])]
    plan = {
        "version": [_PREPROCESSING_VERSION, *map(_version, libraries)],
        "content": digest.hex(),
        "kind": request.kind,
        "reader": reader,
        "num_frames": None if sampling.fps else sampling.num_frames or limits.default_frames,
        "fps": sampling.fps and [sampling.fps, sampling.most(limits.max_frames)],
        "range": [sampling.start or 0.0, sampling.end],
    }
    if sampling.by_duration:
        plan["num_frames"] = ["auto", sampling.most(limits.max_frames)]
    if request.kind == "image":
        plan = {name: plan[name] for name in ("version", "content", "kind")}
    return hashlib.sha256(json.dumps(plan).encode()).digest()


@cache
def _version(library: str) -> str:
    return version(library)  # read from files: milliseconds
