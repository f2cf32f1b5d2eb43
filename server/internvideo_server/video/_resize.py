"""Pictures to the vision tower's size.

The resize is Pillow's own, of a version below 13 (``pyproject.toml``), since the model's merging reacts to single levels: see
the project's ``docs/architecture.md``. Pillow lets go of the interpreter lock while it works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from internvideo_server.video._request import FRAME_SIZE

_PENDING_PER_THREAD = 2  # decoded frames that wait: the bound of their memory, whatever the video's length


def resize(image: Image.Image, out: npt.NDArray[np.uint8]) -> None:
    """Resize an RGB image into ``out``, uint8 [3, 448, 448]."""
    resized = image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
    for plane, channel in zip(out, "RGB", strict=True):
        plane[:] = np.frombuffer(resized.tobytes("raw", channel), np.uint8).reshape(FRAME_SIZE, FRAME_SIZE)


class Resizers:
    """Threads that resize frames while others are decoded. Leaving the context waits for all of them.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._free = threading.Semaphore(_PENDING_PER_THREAD * threads)
        self._work: list[Future[None]] = []

    def __enter__(self) -> Resizers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for done in self._work:
                done.result()

    def submit(self, picture: Callable[[], Image.Image], out: npt.NDArray[np.uint8]) -> None:
        """Resize a picture into ``out``, uint8 [3, 448, 448]; waits while too many do."""
        self._free.acquire()
        self._work.append(self._pool.submit(self._resize, picture, out))

    def _resize(self, picture: Callable[[], Image.Image], out: npt.NDArray[np.uint8]) -> None:
        try:
            resize(picture(), out)
        finally:
            self._free.release()
