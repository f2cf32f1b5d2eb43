"""HTTP without the model: who may ask, sockets and streams, request ids, logs and traces, several processes."""

from ._access import Access, loopback_hosts
from ._disconnect import ClientGoneError, EventStream, until_disconnect
from ._drain import Drain, DrainingServer
from ._events import DONE, HEARTBEAT_S, PING, event, events
from ._keys import KeyRing, Quota
from ._logs import set_up_logging
from ._request_id import RequestIds
from ._socket import SocketLimits, guarded_protocol
from ._traces import Traces, trace_models, tracing
from ._workers import Workers

__all__ = [
    "DONE",
    "HEARTBEAT_S",
    "PING",
    "Access",
    "ClientGoneError",
    "Drain",
    "DrainingServer",
    "EventStream",
    "KeyRing",
    "Quota",
    "RequestIds",
    "SocketLimits",
    "Traces",
    "Workers",
    "event",
    "events",
    "guarded_protocol",
    "loopback_hosts",
    "set_up_logging",
    "trace_models",
    "tracing",
    "until_disconnect",
]
