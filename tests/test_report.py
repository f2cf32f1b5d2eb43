"""The report of a request: what `preprocessing` began comes out of `vit` as it went in, completed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_server.report import MediumReport, PreprocessingReport, Report, VitReport

SECONDS = st.floats(0, 1e6)
MEDIA = st.builds(
    MediumReport,
    st.integers(0, 4096),
    st.integers(0, 4096),
    st.lists(st.integers(0, 10**6), max_size=8),
    st.lists(SECONDS, max_size=8),
    st.integers(0, 8),
    st.none() | SECONDS,
)


@given(st.lists(MEDIA, max_size=3), SECONDS, SECONDS)
def test_a_report_comes_back_and_is_completed(media: list[MediumReport], fetch: float, work: float) -> None:
    begun = Report.of_preprocessing({"fetch_seconds": fetch, "frames_decoded": 3.0}, media)
    assert Report.from_json(begun.to_json()) == begun
    done = Report.from_json(begun.to_json()).with_vit({"work_seconds": work, "cache_hits": 1.0})
    assert done == Report(PreprocessingReport(fetch_seconds=fetch), VitReport(work_seconds=work), media)


def test_what_is_not_known_is_null() -> None:
    document = json.loads(Report().with_vit({"work_seconds": 0.5}).to_json())
    assert (document["preprocessing"], document["vit"]["work_seconds"], document["media"]) == (None, 0.5, [])


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"media": 3}', b"\xff", b'{"vit": {"work_seconds": "long"}}'])
def test_what_is_no_report_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        Report.from_json(raw)
