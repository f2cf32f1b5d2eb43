"""What a replica keeps between requests: uploaded files and responses, in SQLite, shared by the adapter's processes."""

from ._files import MEDIA_PREFIX, FileRecord, FileStore, Upload
from ._responses import ResponseStore, StoredResponse
from ._shares import SharedCounts
from ._store import StateStore

__all__ = ["MEDIA_PREFIX", "FileRecord", "FileStore", "ResponseStore", "SharedCounts", "StateStore", "StoredResponse", "Upload"]
