"""Uploaded files: each belongs to the key that made it, within a quota and for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvideo_client.errors import ApiError, bad_request
from internvideo_server.routing import new_file_id

from ._database import Database

SCHEME = "file-id:"
#: Names of media of requests under way begin with it.
MEDIA_PREFIX = "request-"
_MIB = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """One file.

    Attributes:
        id: ``file-``, the replica's name and 128 random bits: who does not know it cannot name it.
        owner: Whose it is.
        expires: Seconds since the epoch.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created: int
    expires: int

    def json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """Files below one folder, named by their ids.

    Args:
        database: Where they are listed.
        folder: Where they lie; None: this server keeps no files.
        max_file_bytes: Of one file.
        quota_bytes: Of all files of one owner.
        ttl_s: How long a file stays.
        replica: Name that ids carry; None: none.
    """

    def __init__(
        self,
        database: Database,
        folder: Path | None,
        max_file_bytes: int,
        quota_bytes: int,
        ttl_s: int,
        replica: str | None = None,
    ) -> None:
        self._database = database
        self.folder = folder
        self.max_file_bytes = max_file_bytes
        self._quota_bytes = quota_bytes
        self._ttl_s = ttl_s
        self._replica = replica
        self._coming: Counter[str] = Counter()  # owner -> bytes of files that are not complete
        self._counting = threading.Lock()
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def enabled(self) -> bool:
        """Whether files are kept here."""
        return self.folder is not None

    def begin(self, owner: str) -> Upload:
        """A file that is about to come.

        Raises:
            ApiError: 501: no files are kept here.
        """
        if self.folder is None:
            raise ApiError(501, "this server keeps no files: send the video itself, as a data: URL", None, "files_disabled")
        return Upload(self, self.folder / new_file_id(self._replica), owner)

    async def save(self, owner: str, pieces: Sequence[bytes]) -> FileRecord:
        """Keep a medium that came within a request, for the turns that follow; it is not listed."""

        def write() -> Upload:
            upload = self.begin(owner)
            try:
                for piece in pieces:
                    upload.write(piece)
            except BaseException:
                upload.abandon()
                raise
            return upload

        upload = await asyncio.to_thread(write)
        return await upload.commit("media", "response", listed=False)

    async def get(self, file_id: str, owner: str) -> FileRecord | None:
        """A file of this owner."""
        row = await self._database.run(lambda db: _row(db, file_id, owner))
        return None if row is None else _record(row)

    async def listed(self, owner: str, purpose: str | None, limit: int, after: str | None, ascending: bool) -> list[FileRecord]:
        """An owner's files, the newest first unless `ascending`."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            order = "ASC" if ascending else "DESC"
            rows = db.execute(
                f"SELECT * FROM files WHERE owner = ? AND listed AND expires > ? ORDER BY created {order}, rowid {order}",  # noqa: S608
                (owner, time.time()),
            ).fetchall()
            rows = [row for row in rows if purpose is None or row["purpose"] == purpose]
            ids = [row["id"] for row in rows]
            begin = ids.index(after) + 1 if after in ids else 0
            return rows[begin : begin + limit]

        return [_record(row) for row in await self._database.run(work)]

    async def delete(self, file_id: str, owner: str) -> bool:
        """Remove a file; False where there is none of this owner's."""
        found = await self._database.run(
            lambda db: db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)).rowcount
        )
        if found and self.folder is not None:
            await asyncio.to_thread((self.folder / file_id).unlink, missing_ok=True)
        return bool(found)

    def path(self, record: FileRecord) -> Path:
        """Where a file lies."""
        if self.folder is None:
            raise ApiError(501, "this server keeps no files", None, "files_disabled")
        return self.folder / record.id

    async def purge(self) -> None:
        """Remove what is too old, and what an upload that broke off has left."""

        def work(db: sqlite3.Connection) -> list[str]:
            old = [row["id"] for row in db.execute("SELECT id FROM files WHERE expires <= ?", (time.time(),))]
            db.execute("DELETE FROM files WHERE expires <= ?", (time.time(),))
            return old

        for file_id in await self._database.run(work):
            if self.folder is not None:
                await asyncio.to_thread((self.folder / file_id).unlink, missing_ok=True)
        if self.folder is not None:
            await asyncio.to_thread(self._remove_left, self.folder)

    def _remove_left(self, folder: Path) -> None:
        """What a process that was killed has left of its requests' media."""
        for path in folder.glob(f"{MEDIA_PREFIX}*"):
            with contextlib.suppress(OSError):  # it goes just now
                if path.stat().st_mtime < time.time() - self._ttl_s:
                    path.unlink()

    async def resolve(self, messages: list[dict[str, Any]], owner: str) -> list[dict[str, Any]]:
        """The messages with ``file-id:ID`` as the ``file://`` URL that preprocessing may open.

        Raises:
            ApiError: 400: there is no such file of this owner.
        """
        for i, message in enumerate(messages):
            content = message.get("content")
            for j, part in enumerate(content if isinstance(content, list) else ()):
                kind = part.get("type") if isinstance(part, dict) else None
                medium = part.get(kind) if kind in ("video_url", "image_url") else None
                url = medium.get("url") if isinstance(medium, dict) else None
                if isinstance(medium, dict) and isinstance(url, str) and url.startswith(SCHEME):
                    medium["url"] = await self._url(url.removeprefix(SCHEME), owner, f"messages.{i}.content.{j}.{kind}.url")
        return messages

    async def _url(self, file_id: str, owner: str, param: str) -> str:
        record = await self.get(file_id, owner)
        if record is None or self.folder is None:
            raise bad_request(f"there is no file {file_id[:64]!r} of yours here", param, "file_not_found")
        return self.path(record).resolve().as_uri()

    def _count(self, owner: str, size: int) -> None:
        """Bytes that came, or, negative, that are counted no more."""
        with self._counting:
            self._coming[owner] += size
            coming = self._coming[owner]
            if not coming:
                del self._coming[owner]
        if size > 0 and coming > self._quota_bytes:
            message = f"the files on their way are larger than the quota of {self._quota_bytes // _MIB} MiB: send them one by one"
            raise ApiError(413, message, "file", "quota_exceeded")

    async def _insert(self, record: FileRecord, listed: bool) -> None:
        def work(db: sqlite3.Connection) -> None:
            used = db.execute("SELECT SUM(bytes) FROM files WHERE owner = ?", (record.owner,)).fetchone()[0] or 0
            if used + record.bytes > self._quota_bytes:
                left = max(self._quota_bytes - used, 0) // _MIB
                message = f"the quota of {self._quota_bytes // _MIB} MiB of files is used up, {left} MiB are left: delete some"
                raise ApiError(413, message, "file", "quota_exceeded")
            values = (
                record.id,
                record.owner,
                record.filename,
                record.purpose,
                record.bytes,
                record.created,
                record.expires,
                listed,
            )
            db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

        await self._database.run(work)


class Upload:
    """A file that is being written. `commit` or `abandon` it."""

    def __init__(self, store: FileStore, path: Path, owner: str) -> None:
        self._store = store
        self._path = path
        self._owner = owner
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.size = 0

    def write(self, data: bytes) -> None:
        """More of its content.

        Raises:
            ApiError: 413: larger than a file may be, or than all files together.
        """
        self.size += len(data)
        self._store._count(self._owner, len(data))
        if self.size > self._store.max_file_bytes:
            raise ApiError(413, f"the file is larger than {self._store.max_file_bytes} bytes", "file", "request_too_large")
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    async def commit(self, filename: str, purpose: str, *, listed: bool = True) -> FileRecord:
        """It is complete.

        Raises:
            ApiError: 400 (empty), 413 (the quota); it is removed then.
        """
        self._close()
        now = int(time.time())
        record = FileRecord(self._path.name, self._owner, filename, purpose, self.size, now, now + self._store._ttl_s)
        try:
            if not self.size:
                raise bad_request("file: it is empty", "file")
            await self._store._insert(record, listed)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        return record

    def abandon(self) -> None:
        """It will not be complete."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._store._count(self._owner, -self.size)


def _row(db: sqlite3.Connection, file_id: str, owner: str) -> sqlite3.Row | None:
    query = "SELECT * FROM files WHERE id = ? AND owner = ? AND expires > ?"
    row: sqlite3.Row | None = db.execute(query, (file_id, owner, time.time())).fetchone()
    return row


def _record(row: sqlite3.Row) -> FileRecord:
    return FileRecord(row["id"], row["owner"], row["filename"], row["purpose"], row["bytes"], row["created"], row["expires"])
