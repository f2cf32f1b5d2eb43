"""The way in: a request's body read within limits, its media cut out while it comes, its messages in one shape."""

from ._body import BodyLimits, JsonDocument, read_json
from ._in_flight import BytesInFlight
from ._messages import SamplingDefaults, normal_messages
from ._scanner import Cut, JsonScanner, ScanError

__all__ = [
    "BodyLimits",
    "BytesInFlight",
    "Cut",
    "JsonDocument",
    "JsonScanner",
    "SamplingDefaults",
    "ScanError",
    "normal_messages",
    "read_json",
]
