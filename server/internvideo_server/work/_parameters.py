"""The ``parameters`` of a model's config.pbtxt."""

from __future__ import annotations

import json
from typing import Any


def parameters(args: dict[str, Any]) -> dict[str, str]:
    """``initialize``'s arguments -> the string parameters of the model's configuration by name."""
    config = json.loads(args["model_config"])
    return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
