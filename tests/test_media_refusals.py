"""docs/media.md lists every text by which a medium is refused, and each says what helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from internvideo_server import preprocessing

PACKAGE = Path(preprocessing.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "media.md"
RAISED = {"invalid", "ServingError"}
TEXT_NAMES = {"text", "message"}


def refusals() -> Iterator[str]:
    """Texts of errors in the code of media and video, with ``...`` for what stands in between."""
    for path in sorted([*PACKAGE.glob("media/*.py"), *PACKAGE.glob("video/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            found: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
                found = node.args[:2]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in TEXT_NAMES:
                found = [node.value]
            for each in found:
                if len(text := as_text(each)) > 20:
                    yield text


def as_text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return ""


TEXTS = sorted(set(refusals()))


def test_the_texts_are_found() -> None:
    assert len(TEXTS) > 40


@pytest.mark.parametrize("text", TEXTS)
def test_every_refusal_is_on_the_page(text: str) -> None:
    assert plain(text) in plain(PAGE.read_text())


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("`", "").replace("\\", ""))
