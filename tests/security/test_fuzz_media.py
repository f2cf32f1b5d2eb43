"""Damaged media: an answer for each, and no decoder that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.fuzzing import fuzz, lines, seeds

SECONDS = 60.0


def test_there_is_a_seed_of_every_container() -> None:
    names = {seed.name.rpartition(".")[2] for seed in seeds()}
    assert {"mp4", "mov", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "mxf", "ivf", "gif", "png", "webp"} <= names
    assert {"jpeg", "bmp", "tiff"} <= names


@pytest.mark.parametrize("seconds", [2.0, pytest.param(SECONDS, marks=pytest.mark.ci)])
def test_mutants_are_decoded_or_refused(tmp_path: Path, seconds: float) -> None:
    """The same ones each time; `make fuzz` makes others, and ``--start NUMBER`` those of a finding again."""
    found = fuzz(seconds, 0, tmp_path)
    assert not found.failures, "\n".join(lines(found))
    assert found.answers.total()
