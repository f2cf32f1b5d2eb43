"""The servers of this user that run on this machine: each says in ``run.json`` of its private directory what it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._errors import LaunchError
from ._processes import run_directories
from ._run_state import STATE_FILE, private
from ._supervisor import RUN_MARK

RECORD = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What a run tells of itself.

    Attributes:
        run_id: Marks its processes.
        name: What people call it: ``--name``, or else the id.
        pid: Of the launcher, which takes the signals.
        started: Seconds since 1970.
        directory: Where its files and logs lie; None before there are any.
        urls: ``openai``, ``grpc``, ``metrics`` and so on; empty before the ports are chosen.
        models: Of its repository.
        group: Run id of the group that it is a replica of (``serve --replicas``).
    """

    run_id: str
    name: str
    pid: int
    started: float
    directory: str | None = None
    urls: dict[str, str] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    group: str | None = field(default_factory=lambda: os.environ.get(RUN_MARK))


def publish(record: RunRecord, where: Path) -> None:
    """Write a run's record into its private directory.

    Raises:
        LaunchError: Another living run has its name.
    """
    beside = where / f"{RECORD}.new"
    with open(beside, "w", opener=private) as file:
        json.dump(asdict(record), file)
    beside.replace(where / RECORD)
    # Written before it is compared: of two that start at once, one at least sees the other, and the later one gives way.
    for other in living_runs():
        if other.name == record.name and (other.started, other.run_id) < (record.started, record.run_id):
            raise LaunchError(
                f"a server called {record.name} runs already (process {other.pid}): choose another --name, or end it: "
                f"internvideo stop {record.name}"
            )


def living_runs() -> list[RunRecord]:
    """Those whose launcher, or supervisor, lives; the oldest first."""
    return sorted(_records(), key=lambda record: record.started)


def state_of(record: RunRecord) -> dict[str, Any]:
    """The fields of its ``state.json``; only ``status`` "starting" before there is one."""
    if record.directory is not None:
        with contextlib.suppress(OSError, ValueError):
            document: dict[str, Any] = json.loads((Path(record.directory) / STATE_FILE).read_text())
            return document
    return {"status": "starting"}


def _records() -> Iterator[RunRecord]:
    for directory in run_directories():
        with contextlib.suppress(OSError, ValueError, TypeError):  # it has just ended, or is another user's
            if _is_locked(directory / "lock"):
                yield RunRecord(**json.loads((directory / RECORD).read_text()))


def _is_locked(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
