"""Chat messages to prompt ids."""

from ._endings import Endings, word_list
from ._messages import IMAGE_FRAMES_THRESHOLD, Conversation, MediaPart, Message, parse_messages
from ._prompt import DEFAULT_SYSTEM_TEXT, Prompt, build_prompt
from ._tokenizer import ChatTokenizer

__all__ = [
    "DEFAULT_SYSTEM_TEXT",
    "IMAGE_FRAMES_THRESHOLD",
    "ChatTokenizer",
    "Conversation",
    "Endings",
    "MediaPart",
    "Message",
    "Prompt",
    "build_prompt",
    "parse_messages",
    "word_list",
]
