"""What each owner has at work, counted over all processes of the adapter."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ._database import Database


class SharedCounts:
    """Counts in a database of their own, which holds no lock for longer than a count takes.

    A process that died has let go of everything: its rows are removed when another begins, and before anybody is refused.

    Args:
        path: The database's file, in a folder of this run.

    Raises:
        OSError, sqlite3.Error: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._process = os.getpid()
        self._database.run_now(self._forget_the_dead)
        self._database.run_now(lambda db: db.execute("DELETE FROM shares WHERE process = ?", (self._process,)))

    def take(self, owner: str, kind: str, amount: int, limit: int) -> bool:
        """Count more of a kind ("requests", "bytes"); False, and nothing is counted, where that would be more than the limit."""

        def work(db: sqlite3.Connection) -> bool:
            if _total(db, owner, kind) + amount > limit:
                self._forget_the_dead(db)
                if _total(db, owner, kind) + amount > limit:
                    return False
            self._add(db, owner, kind, amount)
            return True

        return self._database.run_now(work)

    def give(self, owner: str, kind: str, amount: int) -> None:
        """Let go of it."""
        self._database.run_now(lambda db: self._add(db, owner, kind, -amount))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _add(self, db: sqlite3.Connection, owner: str, kind: str, amount: int) -> None:
        db.execute(
            "INSERT INTO shares VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
            (owner, kind, self._process, amount),
        )

    def _forget_the_dead(self, db: sqlite3.Connection) -> None:
        for row in db.execute("SELECT DISTINCT process FROM shares").fetchall():
            if not _lives(row["process"]):
                db.execute("DELETE FROM shares WHERE process = ?", (row["process"],))


def _total(db: sqlite3.Connection, owner: str, kind: str) -> int:
    found = db.execute("SELECT SUM(amount) FROM shares WHERE owner = ? AND kind = ?", (owner, kind)).fetchone()
    return found[0] or 0


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
