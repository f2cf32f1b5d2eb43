"""What the engine takes, by the ensemble's own inputs: a field that it would not see is refused with the engine's name."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc

from internvideo_client.errors import bad_request
from internvideo_client.triton import SamplingParams, TritonChatClient

_GUIDE = "guided_decoding_guide_type"
#: Optional input of the ensemble -> the request's field.
_FIELDS = {
    "num_return_sequences": "n",
    "num_top_logprobs": "top_logprobs",
    "embedding_bias": "logit_bias",
    "min_p": "min_p",
    "bad_words_list": "bad_words",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    _GUIDE: "response_format",
    "cache_salt": "cache_salt",
}

_log = logging.getLogger(__name__)


class Capabilities:
    """Asks once what the ensemble takes.

    Args:
        client: Of Triton.
        engine: Its name, for messages.
        secret_file: With the secret by which Triton tells a model's parameters; None: only inputs are known.
    """

    def __init__(self, client: TritonChatClient, engine: str, secret_file: Path | None) -> None:
        self._client = client
        self._engine = engine
        self._secret_file = secret_file
        self._inputs: set[str] | None = None
        self._lock = asyncio.Lock()

    async def check(self, sampling: SamplingParams, *others: str) -> None:
        """Refuse what the engine would not see.

        Args:
            sampling: How to generate.
            others: More inputs that would be sent.

        Raises:
            ApiError: 400 that names the field and the engine.
        """
        sent = {*sampling.tensors(), *others}
        wanted = [name for name in _FIELDS if name in sent]
        if not wanted:
            return
        inputs = await self._known()
        for name in wanted:
            if inputs is not None and name not in inputs:
                field = sampling.guide.field if name == _GUIDE and sampling.guide is not None else _FIELDS[name]
                raise bad_request(f"{field}: the {self._engine} of this server cannot do it", field, "unsupported_parameter")

    async def _known(self) -> set[str] | None:
        async with self._lock:
            if self._inputs is None:
                try:
                    self._inputs = await self._client.inputs() - await self._unsupported()
                except (grpc.RpcError, OSError) as error:  # then the request itself will tell
                    _log.warning("Triton does not tell the ensemble's inputs: %s", error)
            return self._inputs

    async def _unsupported(self) -> set[str]:
        """What the ensemble passes on and the engine does not read (parameter ``unsupported_inputs`` of its model)."""
        if self._secret_file is None:
            return set()
        parameters = await self._client.parameters("tensorrt_llm", self._secret_file.read_text().strip())
        return set(filter(None, parameters.get("unsupported_inputs", "").split(",")))
