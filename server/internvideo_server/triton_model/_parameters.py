"""The ``parameters`` of a model's config.pbtxt."""

from __future__ import annotations

import json
import os
from typing import Any


def parameters(args: dict[str, Any]) -> dict[str, str]:
    """``initialize``'s arguments -> the string parameters of the model's configuration by name.

    As this process writes file names, which is ASCII in Triton's stub: a folder called 视频 is found all the same.
    """
    config = json.loads(args["model_config"])
    return {name: os.fsdecode(entry["string_value"].encode()) for name, entry in config.get("parameters", {}).items()}
