"""The client's commands of ``internvideo``: they need no server package, only a server to talk to."""

from ._batch import batch
from ._bench import bench
from ._chat import chat
from ._frames import frames
from ._router import router
from ._shared import ApiKey, Waiting, errors, failed, show
from ._status import table_of

__all__ = ["ApiKey", "Waiting", "batch", "bench", "chat", "errors", "failed", "frames", "router", "show", "table_of"]
