"""Doing work once: memory bounded in bytes, requests that share one piece of work, and what one model holds for another."""

from internvideo_server.cache._flights import Flights
from internvideo_server.cache._leases import LeaseBook
from internvideo_server.cache._lru import ByteLru
from internvideo_server.cache._socket import LeaseClient, LeaseServer, socket_name
from internvideo_server.cache._tickets import TicketBook

__all__ = ["ByteLru", "Flights", "LeaseBook", "LeaseClient", "LeaseServer", "TicketBook", "socket_name"]
