"""Doing work once: memory bounded in bytes, and requests that share one piece of work."""

from ._lru import ByteLru
from ._single_flight import Flight, SingleFlight

__all__ = ["ByteLru", "Flight", "SingleFlight"]
