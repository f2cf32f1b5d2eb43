"""``python -m internvideo_server.sandbox``: what the sandbox keeps out here, as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys

from ._probe import tried
from ._sandbox import Sandbox

json.dump(dataclasses.asdict(tried(Sandbox())), sys.stdout)
