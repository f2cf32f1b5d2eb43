"""The OpenAI API in front of Triton: HTTP in, gRPC to the ensemble, text out."""

from ._app import create_app
from ._settings import AdapterSettings

__all__ = ["AdapterSettings", "create_app"]
