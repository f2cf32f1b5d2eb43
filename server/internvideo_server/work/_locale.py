"""The locale of a process that Triton's Python stub started."""

from __future__ import annotations

import locale


def read_text_as_utf8() -> None:
    """Make ``open`` read UTF-8, as everywhere else.

    The stub starts Python isolated from the environment, its locale and ``PYTHONUTF8`` too. ``open`` would then read ASCII alone,
    and torch.compile fails on its first import, for some of its files have other characters.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        locale.setlocale(locale.LC_CTYPE, "")
