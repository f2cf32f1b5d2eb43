"""The page and the docs: static files, served by the adapter beside its API. Text of the model is shown as text nodes only."""

from ._routes import PAGE_HEADERS, page_routes

__all__ = ["PAGE_HEADERS", "page_routes"]
