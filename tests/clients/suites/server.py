"""Where the server is, for all suites; the environment tells (test_real_clients.py)."""

import base64
import os
from pathlib import Path

URL = os.environ["CLIENTS_URL"]
BASE_URL = f"{URL}/v1"
KEY = os.environ["CLIENTS_KEY"]
VIDEO = Path(os.environ["CLIENTS_VIDEO"])
MODEL = "InternVideo2_5"
QUESTION = [{"role": "user", "content": "What colour is the star?"}]
TOO_LONG = [{"role": "user", "content": "hi " * 40_000}]


def about(url: str, text: str = "What colour is the star?", **options: object) -> list[dict[str, object]]:
    """Messages that ask about a video."""
    medium = {"type": "video_url", "video_url": {"url": url, "num_frames": 8, **options}}
    return [{"role": "user", "content": [medium, {"type": "text", "text": text}]}]


def data_url() -> str:
    return "data:video/mp4;base64," + base64.b64encode(VIDEO.read_bytes()).decode()


MISSING = VIDEO.with_name("missing.mp4").as_uri()
