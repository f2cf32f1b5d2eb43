"""The docs as a site: ``make docs``. The same Markdown is read on a forge, so links lead to files; here they lead to pages."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from internvideo_server import __version__

ROOT = Path(__file__).resolve().parent.parent

project = "InternVideo2.5 on Triton"
copyright = "Apache 2.0"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["pictures/*.mmd"]
html_theme = "furo"
html_title = project
html_favicon = str(ROOT / "client/internvideo_client/page/static/icon.svg")
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
nitpicky = True

#: Files of the project that are pages of the site too.
_FILES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
_FIGURES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks/results").glob("*.md"))
_MADE = {name: f"generated/{name.replace('/', '_').lower()}" for name in [*_FILES, *_FIGURES]}
_LINK = re.compile(r"\]\(([\w./-]+\.(?:md|svg|png))(?=[)#])")


def _bring_pages(app: Sphinx) -> None:
    """A page for each of those files, whose links lead from where it lies now."""
    (ROOT / "docs/generated").mkdir(exist_ok=True)
    for name, page in _MADE.items():

        def moved(link: re.Match[str], folder: Path = Path(name).parent) -> str:
            target = str(folder / link[1])
            here = _MADE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}")
            return f"](../{here}"

        text = _LINK.sub(moved, (ROOT / name).read_text())
        made = ROOT / "docs" / page
        text = text if name in _FILES else f"---\norphan: true\n---\n\n{text}"
        if not made.exists() or made.read_text() != text:  # else it would be built each time
            made.write_text(text)


def _lead_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Links out of this folder lead to the pages made above."""
    source[0] = re.sub(r"\]\(\.\./([\w./-]+\.md)(?=[)#])", lambda link: f"]({_MADE.get(link[1], '../' + link[1])}", source[0])


def _inline_to_files(app: Sphinx, failure: Exception | None) -> None:
    """The theme's one inline script becomes a file: the server's policy lets no inline scripts run."""
    if failure is not None:
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text()
        if inline := re.search(r"<script>\s*(\S.*?)\s*</script>", text, re.DOTALL):
            (Path(app.outdir) / "_static/theme.js").write_text(inline[1] + "\n")
            up = "../" * (len(page.relative_to(app.outdir).parts) - 1)
            page.write_text(text.replace(inline[0], f'<script src="{up}_static/theme.js"></script>'))


def setup(app: Sphinx) -> None:
    """Sphinx's entry point."""
    app.connect("builder-inited", _bring_pages)
    app.connect("source-read", _lead_to_pages)
    app.connect("build-finished", _inline_to_files)
