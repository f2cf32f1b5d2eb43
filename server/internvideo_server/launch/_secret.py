"""The secret of a run: who does not know it can ask Triton to infer, and nothing else."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

SECRET_FILE = "triton_secret"  # noqa: S105 - a file's name
#: What a client of a running server never needs, and a stranger must not have: loading a model runs its code as this user.
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging", "model-config", "statistics")
_KEY = "internvideo"


@dataclass(frozen=True)
class TritonSecret:
    """The value that a call of a restricted protocol has to carry.

    Args:
        value: 256 random bits in hexadecimal.
    """

    value: str

    @classmethod
    def create(cls, directory: Path) -> TritonSecret:
        """Make a new one and write it to ``triton_secret`` in ``directory``, readable by this user alone.

        Raises:
            OSError: The file cannot be written, or is there already.
        """
        secret = cls(secrets.token_hex(32))
        descriptor = os.open(directory / SECRET_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.value + "\n")
        return secret

    @classmethod
    def read(cls, file: Path) -> TritonSecret:
        """That of a running server.

        Raises:
            OSError: The file cannot be read: it is another user's.
        """
        return cls(file.read_text().strip())

    @property
    def grpc_headers(self) -> dict[str, str]:
        """For tritonclient's ``headers``."""
        return {f"triton-grpc-protocol-{_KEY}": self.value}

    def flags(self, *, http: bool) -> list[str]:
        """Tritonserver's flags that ask for it."""
        rule = f"{','.join(RESTRICTED)}:{_KEY}={self.value}"
        return [f"--grpc-restricted-protocol={rule}"] + [f"--http-restricted-api={rule}"] * http
