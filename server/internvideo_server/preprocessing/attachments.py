"""Media that come beside the messages, which call them ``attachment:N``: as bytes, or as the adapter's files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from internvideo_server.errors import invalid

from .media import Media, MediaPolicy, fetch

SCHEME = "attachment:"
ONLY = f"{SCHEME}video_bytes"  # of a request without sizes
_DATA_URL = b"data:"
_MOST_DIGITS = 9  # Python refuses to read numbers of thousands of them


@dataclass(frozen=True)
class Attachments:
    """The bytes of one request.

    Args:
        content: uint8 [bytes], one medium after another; None: there are none.
        sizes: int64 [media]; None: one medium.
        files: ``file://`` URLs in their place, below folders that the policy allows.
    """

    content: npt.NDArray[np.uint8] | None = None
    sizes: npt.NDArray[np.int64] | None = None
    files: Sequence[str] = ()

    def open(self, url: str, policy: MediaPolicy, param: str) -> Media:
        """A medium by its name.

        Args:
            url: ``attachment:N``, or ``attachment:video_bytes`` for the only one.
            policy: Gives the largest size.
            param: The request field to name in errors.

        Raises:
            ServingError: INVALID_ARGUMENT: there is no such medium, or it is too large.
        """
        if self.files:
            medium = fetch(self._file(url, param), policy, param)
            if os.pread(medium.fd, len(_DATA_URL), 0) != _DATA_URL:
                return medium
            with medium:
                return fetch(os.pread(medium.fd, medium.size, 0).decode("utf-8", "replace"), policy, param)
        piece = self._piece(url, param)
        # What is not plain base64 was left as it came; all forms of data: URLs are known in one place.
        if piece[: len(_DATA_URL)].tobytes() == _DATA_URL:
            return fetch(piece.tobytes().decode("utf-8", "replace"), policy, param)
        return Media.from_chunks([piece.data], policy, param)

    def _file(self, url: str, param: str) -> str:
        number = url.removeprefix(SCHEME)
        if not number.isdecimal() or len(number) > _MOST_DIGITS or int(number) >= len(self.files):
            raise invalid(f"there is no {url[:40]}: the request has {len(self.files)} attachments", param)
        return self.files[int(number)]

    def _piece(self, url: str, param: str) -> npt.NDArray[np.uint8]:
        if self.content is None:
            raise invalid(f"the message refers to {url[:40]}, but the request has no video_bytes", param)
        if url == ONLY and self.sizes is None:
            return self.content
        sizes = np.array([len(self.content)]) if self.sizes is None else self.sizes
        number = url.removeprefix(SCHEME)
        if sizes.sum() != len(self.content) or (sizes < 0).any():
            shown = ", ".join(map(str, sizes[:8].tolist()))
            raise invalid(f"video_sizes [{shown}] do not add up to the {len(self.content)} bytes of video_bytes", param)
        if not number.isdecimal() or len(number) > _MOST_DIGITS or int(number) >= len(sizes):
            raise invalid(f"there is no {url[:40]}: the request has {len(sizes)} attachments", param)
        start = int(sizes[: int(number)].sum())
        return self.content[start : start + int(sizes[int(number)])]


def file_list(text: bytes) -> list[str]:
    """The input ``video_files``: a JSON list of ``file://`` URLs.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    try:
        files = json.loads(text)
    except (ValueError, RecursionError):
        files = None
    if not isinstance(files, list) or not all(isinstance(each, str) and each.startswith("file://") for each in files):
        raise invalid("video_files must be a JSON list of file:// URLs", "messages")
    return files
