"""Pictures to the vision tower's size.

The resize is Pillow's, of a version below 13 (``pyproject.toml``), since the model's merging reacts to single levels: see the
project's ``docs/architecture.md``. Compiled passes with the same result take over as soon as they are loaded; without numba
Pillow does it all. Both let go of the interpreter lock while they work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from internvideo_server.frame_buffer import FRAME_SIZE

from ._resize_kernels import compiled

Pixels = npt.NDArray[np.uint8]  # RGB [height, width, 3]
Planes = npt.NDArray[np.uint8]  # RGB [3, 448, 448], contiguous
Write = Callable[[int, Planes], None]  # puts a frame at a place of the result

_PENDING_PER_THREAD = 2  # decoded frames that wait: the bound of their memory, whatever the video's length


def by_pillow(pixels: Pixels) -> Planes:
    """The resize by Pillow itself."""
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


_resize: Callable[[Pixels], Planes] = by_pillow


def resize(pixels: Pixels) -> Planes:
    """Resize an RGB picture, of any strides."""
    return _resize(pixels)


def load_compiled() -> None:
    """Use the compiled resize from now on, if it is to be had: seconds, once for each process."""
    global _resize
    with contextlib.suppress(ImportError, RuntimeError):  # no numba, or nowhere to keep what it compiles
        _resize = compiled()


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

    def submit(self, picture: Callable[[], Pixels], places: list[int]) -> None:
        """Resize a picture for some places of the result; waits while too many do."""
        self._free.acquire()
        self._work.append(self._pool.submit(self._resize, picture, places))

    def _resize(self, picture: Callable[[], Pixels], places: list[int]) -> None:
        try:
            planes = resize(picture())
            for place in places:
                self._write(place, planes)
        finally:
            self._free.release()
