"""The OpenAI API in front of Triton: HTTP in, gRPC to the ensemble, text out."""

from ._app import create_app, openapi_document

__all__ = ["create_app", "openapi_document"]
