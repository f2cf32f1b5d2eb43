"""The adapter's log, for people or as JSON: each line with the id of its request."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from internvideo_server.settings import AdapterSettings

from ._request_id import RequestIdFilter

_TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``request_id``, ``message``, and of a fault ``exception``.

    Lines about answered requests have ``client``, ``method``, ``path`` and ``status`` too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, _, status = record.args
            document |= {"client": client, "method": method, "path": path, "status": status}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def set_up_logging(settings: AdapterSettings) -> None:
    """Write to standard error, in the format that was asked for."""
    logging.basicConfig(level=settings.log_level.upper(), format=_TEXT, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
        if settings.log_format == "json":
            handler.setFormatter(JsonFormatter())
