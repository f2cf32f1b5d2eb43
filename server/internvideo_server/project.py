"""Where the project's files are that are not code: the model repository, the backends, the demo checkpoint, the examples."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_home() -> Path:
    """``$INTERNVIDEO_HOME``; else the clone that this package is run from; else what the installed package carries.

    The clone comes first: an editable install would otherwise show copies, in which edits are not seen.

    Raises:
        FileNotFoundError: There is no model repository there.
    """
    given = os.environ.get("INTERNVIDEO_HOME")
    places = [Path(given)] if given else [_PACKAGE.parents[1], _PACKAGE / "_project"]
    for home in places:
        if (home / "model_repository").is_dir():
            return home.resolve()
    raise FileNotFoundError(
        f"{places[0]} has no model_repository/: set $INTERNVIDEO_HOME to the root of a clone of the project, or unset it"
    )
