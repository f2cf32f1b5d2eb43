"""One SQLite database in WAL mode, used from threads."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_BUSY_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, listed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, created);
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    document TEXT NOT NULL, messages TEXT NOT NULL, input TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_of_owner ON responses (owner, created);
CREATE TABLE IF NOT EXISTS shares (
    owner TEXT NOT NULL, kind TEXT NOT NULL, process INTEGER NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (owner, kind, process)
);
"""


class Database:
    """A database file.

    Args:
        path: None: in memory, of this process alone.

    Raises:
        sqlite3.Error, OSError: It cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            ":memory:" if path is None else path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None
        )
        self._connection.row_factory = sqlite3.Row
        if path is not None:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in one transaction, in a thread."""
        return await asyncio.to_thread(self.run_now, work)

    def run_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same in this thread."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._connection)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            return result

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._connection.close()
