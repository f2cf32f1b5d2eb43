"""Files that were once read wrongly have the frames that ffmpeg's own program showed, also where no ffmpeg is installed.

What it showed stands in ``data/cases.json``: of each file the number of frames, and some of them: 8 x 6 grey pixels, hexadecimal.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvideo_server.preprocessing.video._pyav import PyavReader
from internvideo_server.preprocessing.video._request import DecodeLimits
from internvideo_server.preprocessing.video._sniff import HEAD_BYTES, video_container

SHOWN = json.loads((Path(__file__).parent / "data" / "cases.json").read_text())
SMALL = (8, 6)


def grey(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("L").resize(SMALL, Image.Resampling.BOX)
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("name", SHOWN)
def test_the_frames_are_those_that_were_shown(shared_dir: Path, name: str) -> None:
    path = shared_dir / "cases" / "media" / name
    container = video_container(path.read_bytes()[:HEAD_BYTES])
    assert container is not None
    reader = PyavReader(str(path), container, DecodeLimits(), 2)
    assert reader.timeline.frame_count == SHOWN[name]["frames"]
    expected = {int(number): np.frombuffer(bytes.fromhex(text), np.uint8) for number, text in SHOWN[name]["shown"].items()}
    found: dict[int, np.ndarray] = {}
    reader.read(sorted(expected), lambda number, picture: found.update({number: grey(picture())}))
    for number, pixels in expected.items():
        assert np.abs(found[number] - pixels.astype(int).reshape(SMALL[1], SMALL[0])).mean() < 4, number
