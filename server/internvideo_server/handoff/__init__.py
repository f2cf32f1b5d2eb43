"""What `preprocessing` and `vit` hand each other beside Triton: frames by descriptor, and cached embeddings that are held."""

from ._incoming import FramesFailedError, IncomingFrames
from ._messages import Ending, Fault, FramePart, Held, MoreFrames
from ._reservations import Reservations, Reserved
from ._socket import HandoffClient, HandoffServer, Reservation

__all__ = [
    "Ending",
    "Fault",
    "FramePart",
    "FramesFailedError",
    "HandoffClient",
    "HandoffServer",
    "Held",
    "IncomingFrames",
    "MoreFrames",
    "Reservation",
    "Reservations",
    "Reserved",
]
