"""Whether an answer in a person's words is right: it contains an accepted form, and no form of a wrong one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_FEW = 7  # letters


def is_right(answer: str, accepted: Iterable[str], rejected: Iterable[str] = ()) -> bool:
    """Compare without case, punctuation and width of characters; English forms match whole words only."""
    said = _normal(answer)
    return any(_contains(said, form) for form in accepted) and not any(_contains(said, form) for form in rejected)


def nearly_the_same(one: str, other: str) -> bool:
    """Whether two phrasings differ by no more than a few letters in front or behind, case and punctuation aside."""
    short, long = sorted((_normal(one), _normal(other)), key=len)
    return short in long and len(long) - len(short) <= _FEW


def _normal(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def _contains(said: str, form: str) -> bool:
    wanted = _normal(form)
    if _CHINESE.search(wanted):
        return wanted.replace(" ", "") in said.replace(" ", "")
    return f" {wanted} " in f" {said} "
