"""API keys: known by their hashes, each with its share of the server."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from internvideo_client.errors import ApiError
from internvideo_client.state import SharedCounts
from internvideo_server.settings import AdapterSettings


@dataclass
class Quota:
    """What one key may have at once.

    Args:
        owner: Of what the key makes: half of its hash.
        max_requests: At work; None: any number.
        max_bytes: Of bodies; None: any number.
        shared: Counts of all processes of the adapter; None: there is this one alone.
    """

    owner: str
    max_requests: int | None = None
    max_bytes: int | None = None
    shared: SharedCounts | None = None
    requests: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)

    def begin(self) -> None:
        """Another request.

        Raises:
            ApiError: 429.
        """
        if self._is_too_much("requests", self.requests, 1, self.max_requests):
            message = f"this key has {self.max_requests} requests at work, as many as it may: wait for one of them"
            raise ApiError(429, message, None, "too_many_requests")
        self.requests += 1

    def end(self) -> None:
        """It has been answered."""
        self.requests -= 1
        self._give("requests", 1, self.max_requests)

    def take_bytes(self, size: int) -> None:
        """More bytes of a body.

        Raises:
            ApiError: 429.
        """
        if self._is_too_much("bytes", self.bytes, size, self.max_bytes):
            message = f"this key's requests are larger than the {self.max_bytes} bytes that it may send at once"
            raise ApiError(429, message, None, "too_many_bytes")
        self.bytes += size

    def give_bytes(self, size: int) -> None:
        """They are let go."""
        self.bytes -= size
        self._give("bytes", size, self.max_bytes)

    def _is_too_much(self, kind: str, have: int, more: int, limit: int | None) -> bool:
        if limit is None:
            return False
        if self.shared is not None:
            return not self.shared.take(self.owner, kind, more, limit)
        return have + more > limit

    def _give(self, kind: str, amount: int, limit: int | None) -> None:
        if limit is not None and self.shared is not None and amount:
            self.shared.give(self.owner, kind, amount)


class KeyRing:
    """The keys of ``--api-key`` and of ``--api-key-file`` (one a line, # begins a comment).

    Raises:
        OSError, ValueError, sqlite3.Error: The file cannot be read, or has no key; the shared counts cannot be used.
    """

    def __init__(self, settings: AdapterSettings) -> None:
        self._settings = settings
        folder = settings.state_directory
        self._shared = None
        limited = settings.max_requests_per_key is not None or settings.max_bodies_mb_per_key is not None
        if limited and settings.adapter_workers > 1 and folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._shared = SharedCounts(folder / "shares.sqlite3")
        self._quotas: dict[bytes, Quota] = {}
        self.read()

    def read(self) -> None:
        """Read them again; a key that stays keeps what it has at work."""
        keys = [key for each in self._settings.api_key for key in re.split(r"[\s,]+", each.get_secret_value())]
        if self._settings.api_key_file is not None:
            lines = self._settings.api_key_file.read_text().splitlines()
            keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
        found = {}
        for key in filter(None, keys):
            digest = hashlib.sha256(key.encode()).digest()
            per_key = self._settings.max_bodies_mb_per_key
            most_bytes = None if per_key is None else per_key << 20
            new = Quota(digest.hex()[:32], self._settings.max_requests_per_key, most_bytes, self._shared)
            found[digest] = self._quotas.get(digest, new)
        if not found and self._settings.api_key_file is not None:
            raise ValueError(f"{self._settings.api_key_file} has no key: nobody could ask")
        self._quotas = found

    def close(self) -> None:
        """Close the shared counts."""
        if self._shared is not None:
            self._shared.close()

    def any(self) -> bool:
        """Whether there are keys."""
        return bool(self._quotas)

    def quota(self, digest: bytes) -> Quota | None:
        """Of a key by its hash. All are compared, in constant time."""
        found = None
        for known, quota in self._quotas.items():
            if hmac.compare_digest(known, digest):
                found = quota
        return found
