"""The diagrams of the docs: docs/pictures/NAME.mmd (Mermaid) becomes NAME.svg, by ``make diagrams``.

The pictures are committed: neither a reader nor the build of the docs needs a network, a browser or Mermaid.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
# Text as SVG text (a picture in a page has no HTML), on white, so that it can be read on dark pages too.
_SETTINGS = """{startOnLoad: false, theme: "neutral", htmlLabels: false, deterministicIds: true, fontFamily: "sans-serif",
    flowchart: {htmlLabels: false}, themeCSS: "svg { background: white }"}"""


def mark(source: str) -> str:
    """The comment that says of which source a picture is."""
    return f"<!-- of {hashlib.sha256(source.encode()).hexdigest()[:16]} -->"


def draw(mermaid: Path, browser: str) -> None:
    """Draw every diagram.

    Args:
        mermaid: Mermaid's script (``mermaid.min.js``).
        browser: Chromium's program.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(path=mermaid)
        page.evaluate(f"mermaid.initialize({_SETTINGS})")
        for source in sorted(PICTURES.glob("*.mmd")):
            text = source.read_text()
            drawn = page.evaluate("async ([name, text]) => (await mermaid.render(name, text)).svg", [source.stem, text])
            # As XML, which is stricter than the HTML that comes out.
            drawn = page.evaluate(
                """svg => { const box = document.createElement("div"); box.innerHTML = svg;
                   const drawing = box.firstChild; drawing.style.background = "white";
                   const size = drawing.viewBox.baseVal; drawing.setAttribute("width", Math.ceil(size.width));
                   drawing.setAttribute("height", Math.ceil(size.height));
                   for (const part of [drawing, ...drawing.querySelectorAll("*")])
                     for (const name of part.getAttributeNames()) if (name.startsWith("data-")) part.removeAttribute(name);
                   return new XMLSerializer().serializeToString(drawing) }""",
                drawn,
            )
            source.with_suffix(".svg").write_text(f"{mark(text)}\n{drawn}\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mermaid", type=Path, help="mermaid.min.js")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    if arguments.browser is None:
        parser.error("needs Chromium: apt-get install chromium, or --browser PROGRAM")
    draw(arguments.mermaid, arguments.browser)


if __name__ == "__main__":
    main()
