"""Responses that can be read again and gone on from; each belongs to the key that made it."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from ._database import Database

MAX_STORED_BYTES = 4 << 20


@dataclass(frozen=True)
class StoredResponse:
    """One response.

    Attributes:
        document: As it was answered.
        messages: The conversation up to it and with it, as chat messages.
        input: The items that were asked with, as they came.
    """

    document: dict[str, Any]
    messages: list[dict[str, Any]]
    input: list[dict[str, Any]]


class ResponseStore:
    """Keeps the newest ones.

    Args:
        database: Where they are kept.
        count: Of one owner, the oldest go first.
        ttl_s: How long one stays.
    """

    def __init__(self, database: Database, count: int, ttl_s: int) -> None:
        self._database = database
        self._count = count
        self._ttl_s = ttl_s

    async def put(self, owner: str, response: StoredResponse) -> bool:
        """Keep one; False where it is too large to be kept."""
        texts = [json.dumps(each) for each in (response.document, response.messages, response.input)]
        if sum(map(len, texts)) > MAX_STORED_BYTES:
            return False
        now = int(time.time())

        def work(db: sqlite3.Connection) -> None:
            values = (response.document["id"], owner, now, now + self._ttl_s, *texts)
            db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            db.execute(
                "DELETE FROM responses WHERE owner = ? AND rowid NOT IN "
                "(SELECT rowid FROM responses WHERE owner = ? ORDER BY created DESC, rowid DESC LIMIT ?)",
                (owner, owner, self._count),
            )

        await self._database.run(work)
        return True

    async def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """One of this owner's."""
        query = "SELECT * FROM responses WHERE id = ? AND owner = ? AND expires > ?"
        row = await self._database.run(lambda db: db.execute(query, (response_id, owner, time.time())).fetchone())
        return None if row is None else StoredResponse(*(json.loads(row[name]) for name in ("document", "messages", "input")))

    async def delete(self, response_id: str, owner: str) -> bool:
        """Remove one; False where there is none of this owner's."""
        query = "DELETE FROM responses WHERE id = ? AND owner = ?"
        return bool(await self._database.run(lambda db: db.execute(query, (response_id, owner)).rowcount))

    async def purge(self) -> None:
        """Remove what is too old."""
        await self._database.run(lambda db: db.execute("DELETE FROM responses WHERE expires <= ?", (time.time(),)).rowcount)
