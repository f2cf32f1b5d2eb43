"""The vision tower: frames in, embeddings for the LLM's prompt table out.

uint8 frames -> normalise -> InternViT -> pixel shuffle -> HiCo token merging over groups of 4 frames -> projector,
16 rows of the LLM's hidden size a frame.
"""

from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.vision._config import VisionConfig
from internvideo_server.vision._model import Quantization, Stopped, VisionModel

__all__ = ["FRAMES_PER_GROUP", "TOKENS_PER_FRAME", "Quantization", "Stopped", "VisionConfig", "VisionModel"]
