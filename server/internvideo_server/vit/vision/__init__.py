"""The vision tower: frames in, embeddings for the LLM's prompt table out.

uint8 frames -> normalise -> InternViT -> pixel shuffle -> HiCo token merging over groups of 4 frames -> projector,
16 rows of the LLM's hidden size a frame.
"""

from ._config import VisionConfig
from ._loading import load_vision
from ._model import Quantization, VisionModel

__all__ = ["Quantization", "VisionConfig", "VisionModel", "load_vision"]
