"""Pictures to the vision tower's size.

The resize is Pillow's own, of a version below 13 (``pyproject.toml``), since the model's merging reacts to single levels: see
the project's ``docs/architecture.md``. Pillow lets go of the interpreter lock while it works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from PIL import Image

from internvideo_server.video._request import FRAME_SIZE

Planes = list[bytes]  # red, green, blue: 448 x 448 bytes each
Write = Callable[[int, Planes], None]  # puts a frame at a place of the result

_PENDING_PER_THREAD = 2  # decoded frames that wait: the bound of their memory, whatever the video's length


def resize(image: Image.Image) -> Planes:
    """Resize an RGB image."""
    resized = image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
    return [resized.tobytes("raw", channel) for channel in "RGB"]


class Resizers:
    """Threads that resize frames while others are decoded. Leaving the context waits for all of them.

    Args:
        threads: How many.
        write: Takes the results, from several threads.
    """

    def __init__(self, threads: int, write: Write) -> None:
        self._write = write
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

    def submit(self, picture: Callable[[], Image.Image], places: list[int]) -> None:
        """Resize a picture for some places of the result; waits while too many do."""
        self._free.acquire()
        self._work.append(self._pool.submit(self._resize, picture, places))

    def _resize(self, picture: Callable[[], Image.Image], places: list[int]) -> None:
        try:
            planes = resize(picture())
            for place in places:
                self._write(place, planes)
        finally:
            self._free.release()
