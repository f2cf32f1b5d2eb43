"""The docs as a site: built strictly, from the project alone, and current pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts.draw_diagrams import PICTURES, mark
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("sphinx", reason="needs Sphinx: make setup")
    folder = tmp_path_factory.mktemp("docs")
    command = ["make", "-o", ".venv/.setup", "docs", f"DOCS={folder}", f"BIN={Path(sys.executable).parent}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.ci
def test_every_page_is_built_without_a_warning(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    assert "generated/changelog.html" in (site / "index.html").read_text()


@pytest.mark.ci
def test_the_site_loads_nothing_from_elsewhere_and_has_no_inline_scripts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|link|source)\b[^>]*?(?:src|href)=\"([^\"]*)", text)
        assert [address for address in loaded if "//" in address] == [], page
        assert re.findall(r"<script(?![^>]*src=)[^>]*>\s*\S", text) == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


@pytest.mark.parametrize("source", sorted(PICTURES.glob("*.mmd")), ids=lambda path: path.stem)
def test_a_diagram_is_drawn_from_its_source_as_it_is(source: Path) -> None:
    drawn = source.with_suffix(".svg").read_text()
    assert drawn.startswith(mark(source.read_text())), "make diagrams"
    assert "<foreignObject" not in drawn and "<script" not in drawn  # a picture in a page has no HTML
