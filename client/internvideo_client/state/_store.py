"""All that is kept, by the settings."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from internvideo_server.settings import AdapterSettings

from ._database import Database
from ._files import FileStore
from ._responses import ResponseStore

_PURGE_EVERY_S = 60.0
_KEPT_RESPONSES = 1000

_log = logging.getLogger(__name__)


class StateStore:
    """Files and responses of one replica.

    Args:
        settings: ``state_directory`` (None: responses in memory, no files), sizes, quota and TTL.

    Raises:
        OSError, sqlite3.Error: The folder cannot be used.
    """

    def __init__(self, settings: AdapterSettings) -> None:
        folder = settings.state_directory
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(None if folder is None else folder / "state.sqlite3")
        self.files = FileStore(
            self._database,
            None if folder is None else folder / "files",
            settings.max_file_mb << 20,
            settings.file_quota_mb << 20,
            int(settings.file_ttl),
            settings.replica_name,
        )
        self.responses = ResponseStore(self._database, _KEPT_RESPONSES, int(settings.file_ttl))

    async def keep_clean(self) -> None:
        """Remove what is too old, for ever."""
        while True:
            try:
                await self.files.purge()
                await self.responses.purge()
            except (OSError, sqlite3.Error):
                _log.exception("old files and responses cannot be removed")
            await asyncio.sleep(_PURGE_EVERY_S)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
