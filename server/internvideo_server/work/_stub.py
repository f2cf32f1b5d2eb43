"""What a process that Triton's Python stub started has to be given first."""

from __future__ import annotations

import locale
import resource


def prepare_process() -> None:
    """Done at the import of the package."""
    _read_text_as_utf8()
    _allow_many_files()


def _read_text_as_utf8() -> None:
    """Make ``open`` read UTF-8, as everywhere else.

    The stub starts Python isolated from the environment, its locale and ``PYTHONUTF8`` too. ``open`` would then read ASCII alone,
    and torch.compile fails on its first import, for some of its files have other characters.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        locale.setlocale(locale.LC_CTYPE, "")


def _allow_many_files() -> None:
    """Each medium whose frames are kept, or wait for their request, is an open descriptor."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
