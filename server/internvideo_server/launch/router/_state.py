"""What a router's folder holds: its settings as they are now, the configuration by them, and a lock."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from internvideo_server.launch._errors import LaunchError, refused_by_the_system
from internvideo_server.settings import RouterSettings

from ._haproxy import check, find_haproxy
from ._render import certificate, render
from ._replica import Replica

_SETTINGS, _RESTING, _CONFIGURATION, _CHANGING = "settings.json", "resting.json", "haproxy.cfg", "changing.lock"


@dataclass(frozen=True)
class RouterState:
    """A router's settings, with the ports that were chosen, its folder, and the replicas that were drained."""

    settings: RouterSettings
    directory: Path
    resting: frozenset[str] = frozenset()

    @property
    def configuration(self) -> Path:
        """The file that HAProxy reads, also where it is started again."""
        return self.directory / _CONFIGURATION

    def with_replicas(self, replicas: Sequence[Replica]) -> RouterState:
        """The same with others."""
        return replace(self, settings=self.settings.model_copy(update={"replica": tuple(map(str, replicas))}))

    def write(self) -> None:
        """Put it into the folder.

        Raises:
            LaunchError: HAProxy refuses it; then nothing is changed.
        """
        with refused_by_the_system("--router-directory"):
            if self.settings.ssl_certfile:
                put(certificate(self.directory), certificate_of(self.settings))
            new = self.configuration.with_suffix(".new")
            put(new, render(self.settings, self.directory, resting=self.resting))
            check(find_haproxy(), new)
            os.replace(new, self.configuration)
            put(self.directory / _SETTINGS, self.settings.model_dump_json())
            put(self.directory / _RESTING, json.dumps(sorted(self.resting)))

    @classmethod
    @contextmanager
    def changing(cls, directory: Path) -> Iterator[RouterState]:
        """What is there now; nobody else changes it meanwhile.

        Raises:
            LaunchError: There is no router, or it is another user's.
        """
        try:
            with _locked(directory / _CHANGING):
                settings = RouterSettings.model_validate_json((directory / _SETTINGS).read_text())
                yield cls(settings, directory, frozenset(json.loads((directory / _RESTING).read_text())))
        except FileNotFoundError as error:
            raise LaunchError(f"no router runs with --router-directory {directory}") from error


def certificate_of(settings: RouterSettings) -> str:
    """Chain and key together.

    Raises:
        OSError: One of them cannot be read.
    """
    return "\n".join(file.read_text() for file in (settings.ssl_certfile, settings.ssl_keyfile) if file)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def put(path: Path, text: str) -> None:
    """Whole or not at all, for this user alone."""
    beside = path.with_name(f".{path.name}")
    with open(beside, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    os.replace(beside, path)
