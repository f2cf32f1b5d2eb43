"""The reference page is what the routes say now, and the routes say it of all that they answer."""

from __future__ import annotations

from build_scripts.api_reference import PAGE, reference
from internvideo_client.adapter import openapi_document
from internvideo_client.protocol import ChatCompletionRequest


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m build_scripts.api_reference"


def test_every_field_of_a_chat_is_described() -> None:
    body = openapi_document()["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) == set(ChatCompletionRequest.model_fields)


def test_every_route_tells_errors_and_a_key_where_one_is_asked_for() -> None:
    for path, methods in openapi_document()["paths"].items():
        for operation in methods.values():
            assert {"403", "408", "500", "503"} <= operation["responses"].keys(), path
            assert ("401" in operation["responses"]) == ("security" in operation), path
            schema = next(iter(operation["responses"]["200"]["content"].values()))["schema"]
            assert schema.get("type") == "string" or schema["properties"], path
