"""A started system, for those who started it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ._processes import SUPERVISOR, Ended, Supervisor
from ._recovery import Recovery
from ._secret import TritonSecret
from ._supervisor import marked_processes, shm_prefix


class RunningServer:
    """A started system (context manager; leaving it stops everything).

    Attributes:
        openai_url: Base URL of the OpenAI API, ``http://host:port/v1``.
        page_url: The web page for people.
        adapter_url: ``http://host:port`` (health, metrics of the adapter).
        http_url: Triton's HTTP endpoint, ``http://host:port``; None where it is off.
        grpc_url: Triton's gRPC endpoint as tritonclient takes it, ``host:port``.
        metrics_url: Triton's Prometheus page.
        secret: What Triton's restricted protocols (loading models, registering memory) ask for.
        repository: The rendered model repository.
        backends: The backend directory.
        engine: The engine directory.
        logs: Log files by program (``tritonserver``, ``adapter``).
    """

    def __init__(
        self,
        stack: ExitStack,
        supervisor: Supervisor,
        recovery: Recovery,
        urls: dict[str, str],
        paths: dict[str, Path],
        logs: dict[str, Path],
        secret: TritonSecret,
        run_id: str,
    ) -> None:
        self._run_id = run_id
        self._stack, self._supervisor, self._recovery, self.logs, self.secret = stack, supervisor, recovery, logs, secret
        self.openai_url, self.adapter_url = urls["openai"], urls["adapter"]
        self.page_url = f"{urls['adapter']}/"
        self.http_url, self.grpc_url, self.metrics_url = urls.get("http"), urls["grpc"], urls["metrics"]
        self.repository, self.backends, self.engine = paths["repository"], paths["backends"], paths["engine"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def poll(self) -> str | None:
        """Why the run is over: something died more often than a restart can help; None while it goes on."""
        return self._recovery.ended

    def processes(self) -> list[int]:
        """Ids of its processes: tritonserver, the models' and their workers', the adapter."""
        return list(marked_processes(self._run_id))

    def segments(self) -> list[Path]:
        """Its shared memory."""
        return list(Path("/dev/shm").glob(f"{shm_prefix(self._run_id)}*"))  # noqa: S108 - looked at

    def drain(self, timeout_s: float, hurry: Callable[[], bool]) -> None:
        """Take no more requests, and let those under way end; nothing is healed from now on.

        Args:
            timeout_s: For the adapter, which ends what is left when its own time is up.
            hurry: Whether to wait no longer.
        """
        self._recovery.drain()
        self._supervisor.end("adapter")
        deadline = time.monotonic() + timeout_s
        while not hurry() and time.monotonic() < deadline:
            ended = self._supervisor.wait(0.1)
            if isinstance(ended, Ended) and ended.name in ("adapter", SUPERVISOR):
                return

    def reload(self) -> None:
        """Read API keys and certificates again; requests go on."""
        self._supervisor.hang_up("adapter")

    def stop(self) -> None:
        """End the adapter at once, then tritonserver, and remove what they leave. Idempotent."""
        self._stack.close()
