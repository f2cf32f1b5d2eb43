"""What every route needs: the settings, the engine's facts, the client of Triton and the stores."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from importlib import metadata

from starlette.requests import Request
from tokenizers import Tokenizer

from internvideo_client.detokenizer import Vocabulary
from internvideo_client.engine_files import EngineFacts
from internvideo_client.errors import ApiError
from internvideo_client.ingest import BodyLimits, BytesInFlight
from internvideo_client.state import StateStore
from internvideo_client.triton import TritonChatClient
from internvideo_server.settings import AdapterSettings

from ._metrics import Metrics
from .generation import Capabilities

#: The model's name where it comes from; always known beside the served ones.
UPSTREAM_NAME = "OpenGVLab/InternVideo2_5_Chat_8B"
_SHOWN = 100  # characters of a client's own value that a message quotes
VERSION = metadata.version("internvideo-triton")


@dataclass
class Context:
    """One adapter process."""

    settings: AdapterSettings
    tokenizer: Tokenizer
    engine: EngineFacts
    client: TritonChatClient
    state: StateStore
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))
    #: In front of Triton's request ids: a client that knows its own X-Request-Id cannot guess another's.
    id_prefix: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary(self.tokenizer)
        self.capabilities = Capabilities(self.client, self.engine.name, self.settings.triton_secret_file)
        self.limits = BodyLimits(self.settings.max_body_mb << 20, self.settings.max_json_mb << 20)
        self.in_flight = BytesInFlight(self.settings.max_bodies_mb << 20)
        facts = json.dumps([self.model_names[0], self.engine.name, self.engine.digest, VERSION])
        self.fingerprint = f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    @property
    def model_names(self) -> tuple[str, ...]:
        """By which clients may call the model, the first one first."""
        return tuple(dict.fromkeys((*self.settings.served_model_name, UPSTREAM_NAME)))

    @property
    def max_frames(self) -> int:
        """What a video may have."""
        return min(self.settings.max_frames, self.engine.max_frames or self.settings.max_frames)

    def check_model(self, model: str) -> None:
        """Refuse another model's name.

        Raises:
            ApiError: 404.
        """
        if model not in self.model_names:
            shown = model if len(model) <= _SHOWN else f"{model[:_SHOWN]}..."
            raise ApiError(404, f"there is no model {shown!r} here, only {self.model_names[0]!r}", "model", "model_not_found")

    def triton_id(self, request: Request) -> str:
        """A new id for Triton, which carries the client's."""
        return f"{self.id_prefix}{secrets.token_hex(12)}"

    def cache_salt(self, owner: str, asked: str | None) -> str | None:
        """By which cached frames are kept apart: the key's, where the server does so, and the request's own."""
        of_key = owner if self.settings.cache_salt == "key" else ""
        return f"{of_key}:{asked or ''}" if of_key or asked else None


def context_of(request: Request) -> Context:
    """The app's."""
    context: Context = request.app.state.context
    return context


def owner_of(request: Request) -> str:
    """Whose request it is: a hash of its API key, empty where there are no keys."""
    owner: str = request.scope.get("internvideo.owner", "")
    return owner
