"""``/openapi.json``: what the routes say of themselves."""

from ._document import ANY, KEYED, describe, document_of_routes, form_body, json_body, parameters, responses

__all__ = [
    "ANY",
    "KEYED",
    "describe",
    "document_of_routes",
    "form_body",
    "json_body",
    "parameters",
    "responses",
]
