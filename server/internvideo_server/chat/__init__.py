"""Chat messages to prompt ids."""

from internvideo_server.chat._messages import Conversation, MediaPart, Message, parse_messages
from internvideo_server.chat._prompt import DEFAULT_SYSTEM_TEXT, Prompt, build_prompt
from internvideo_server.chat._tokenizer import ChatTokenizer
from internvideo_server.limits import TOKENS_PER_FRAME

__all__ = [
    "DEFAULT_SYSTEM_TEXT",
    "TOKENS_PER_FRAME",
    "ChatTokenizer",
    "Conversation",
    "MediaPart",
    "Message",
    "Prompt",
    "build_prompt",
    "parse_messages",
]
