"""The ``parameters`` of a model's config.pbtxt."""

from __future__ import annotations

import json
import os
from typing import Any


def parameters(args: dict[str, Any]) -> dict[str, str]:
    """``initialize``'s arguments -> the string parameters of the model's configuration by name.

    The stub's Python takes file names for ASCII (``_locale.py``): a path with other characters is given in the form that ``os``
    turns back into its bytes.
    """
    config = json.loads(args["model_config"])
    return {name: os.fsdecode(entry["string_value"].encode()) for name, entry in config.get("parameters", {}).items()}
