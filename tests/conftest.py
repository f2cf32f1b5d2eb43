"""Fixtures shared by all tests: golden data where it exists, and one real server a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Golden data of the original model and the test video: ``../shared`` or ``$INTERNVIDEO_SHARED``; not part of the project."""
    path = Path(os.environ.get("INTERNVIDEO_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"needs the golden data of the original model in {path} (or set INTERNVIDEO_SHARED)")
    return path


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> Path:
    """The golden case: a tiny checkpoint in the real layout, and what the original code computed with it."""
    return shared_dir / "golden" / "tiny_s7"
