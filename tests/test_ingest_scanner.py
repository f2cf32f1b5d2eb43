"""Media strings are cut out of JSON, whatever its pieces; what is left is counted before it is parsed."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_client.ingest import JsonScanner, ScanError

HEAD = "data:video/mp4;base64,"
media = st.one_of(
    st.binary(min_size=8, max_size=200).map(lambda data: HEAD + base64.b64encode(data).decode()),
    st.binary(min_size=8, max_size=90).map(lambda data: "data:video/jpeg;base64," + base64.b64encode(data).decode() + ",QUJD"),
    st.text("ABCD+/=%-_\n", min_size=20, max_size=90).map(lambda text: HEAD + text),
    st.text(min_size=4).map(lambda text: "data:" + text * 5),
)
values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | media,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner)
    ),
    max_leaves=12,
)


def restored(value: Any, cuts: dict[str, str]) -> Any:
    if isinstance(value, str):
        return cuts.get(value, value)
    if isinstance(value, list):
        return [restored(each, cuts) for each in value]
    return {key: restored(each, cuts) for key, each in value.items()} if isinstance(value, dict) else value


def scanned(document: bytes, sizes: list[int], **options: Any) -> tuple[Any, JsonScanner]:
    scanner, at, turn = JsonScanner(**options), 0, 0
    while at < len(document):
        size = sizes[turn % len(sizes)]
        scanner.feed(document[at : at + size])
        at, turn = at + size, turn + 1
    return json.loads(scanner.finish()), scanner


@given(values, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from(["plain", "slashes", "escapes", "indent"]))
def test_any_split_of_any_document_gives_what_json_gives(document: Any, sizes: list[int], style: str) -> None:
    text = json.dumps({"d": document}, indent=1 if style == "indent" else None, ensure_ascii=style != "slashes")
    if style == "slashes":
        text = text.replace("/", r"\/")
    if style == "escapes":
        text = text.replace("+", r"\u002b").replace("=", r"\u003d")
    found, scanner = scanned(text.encode(), sizes, cut_from=12)
    assert restored(found, {cut.mark: cut.text for cut in scanner.cuts}) == json.loads(text)


def test_a_medium_is_decoded_and_its_place_is_marked() -> None:
    content = bytes(range(256)) * 100
    text = json.dumps({"url": HEAD + base64.b64encode(content).decode(), "rest": ["a", 1]})
    found, scanner = scanned(text.encode(), [1000])
    (cut,) = scanner.cuts
    assert found == {"url": cut.mark, "rest": ["a", 1]}
    assert b"".join(cut.pieces) == content and cut.head == HEAD.rstrip(",").encode()


@pytest.mark.parametrize("head", ["data:video/jpeg;base64,", "data:text/plain,", "data:video/mp4;base64,%2B", f"{HEAD}QQ=="])
def test_forms_that_are_no_plain_base64_stay_text(head: str) -> None:
    text = head + "QUJD" * 2000
    _, scanner = scanned(json.dumps([text]).encode(), [3000])
    assert b"".join(scanner.cuts[0].pieces).decode() == text and not scanner.cuts[0].head


@pytest.mark.parametrize(
    ("document", "limit", "message"),
    [
        (b"[" + b"{}," * 5000 + b"{}]", {"max_values": 5000}, "more than 5000 values"),
        (b"[" * 70, {}, "nested deeper than 64"),
        (b'{"a":' * 70, {}, "nested deeper than 64"),
        (b'["' + b"x" * 2000 + b'"]', {"max_rest_bytes": 1000}, "larger than 1000 bytes"),
        (b'["data:video/mp4;base64,' + b"QUJD" * 2000, {}, "ends within a string"),
    ],
)
def test_what_is_beyond_a_limit_is_refused(document: bytes, limit: dict[str, int], message: str) -> None:
    with pytest.raises(ScanError, match=message):
        scanned(document, [997], **limit)


def test_a_deep_document_of_legal_depth_passes() -> None:
    assert scanned(b"[" * 64 + b"]" * 64, [3])[0] is not None


@pytest.mark.parametrize("end", ["!", "\\n", "-", "=="])
def test_base64_that_ends_after_more_than_a_text_may_have_is_refused(end: str) -> None:
    scanner = JsonScanner(max_rest_bytes=1 << 20)
    with pytest.raises(ScanError, match="not valid base64") as refused:
        for _ in range(3):
            scanner.feed(b'{"url":"' * (not scanner.cuts) + HEAD.encode() * (not scanner.cuts) + b"QUJD" * (1 << 18))
        scanner.feed(end.encode() + b"QUJDQUJD" * 20_000)
    assert not refused.value.too_large


def test_an_escape_that_json_does_not_know_is_no_json() -> None:
    with pytest.raises(ScanError, match="not valid JSON"):
        scanned(b'{"url":"' + HEAD.encode() + b"QUJD" * 2000 + b'\\x"}', [100_000])
