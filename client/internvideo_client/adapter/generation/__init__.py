"""Between OpenAI's words and the engine's: what it can do, guides and tools, and its tokens as answers."""

from ._answer import Answer, Pieces
from ._capabilities import Capabilities
from ._guided import guide_of
from ._log_probs import LogProbWriter
from ._sequence import Piece, TokenEntry
from ._tools import CallReader, forced_name, is_forced, with_tool_prompt

__all__ = [
    "Answer",
    "CallReader",
    "Capabilities",
    "LogProbWriter",
    "Piece",
    "Pieces",
    "TokenEntry",
    "forced_name",
    "guide_of",
    "is_forced",
    "with_tool_prompt",
]
