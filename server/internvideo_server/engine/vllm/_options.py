"""What a deployment may say about vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from internvideo_server.memory import Deployment
from internvideo_server.settings import VllmSettings


@dataclass(frozen=True)
class VllmOptions:
    """What of vLLM's ``EngineArgs`` is not the engine directory's.

    Attributes:
        quantization: Of the weights: none, fp8 (done at the start), or int8 where the checkpoint was prepared for it.
        kv_cache_dtype: auto, fp8, ...
        tensor_parallel_size: GPUs of one model.
        gpu_memory: GiB of a GPU for all of this project; None: what is free less 2.
        engine_args: Further ``EngineArgs`` by name; they win.
    """

    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory: float | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: VllmSettings) -> VllmOptions:
        """From the model's parameters."""
        return cls(
            settings.llm_quantization,
            settings.kv_cache_dtype,
            settings.tensor_parallel_size,
            settings.gpu_memory,
            _engine_args(settings.engine_arg),
        )

    def deployment(self, of: Deployment) -> Deployment:
        """What an engine directory's language model takes of a GPU when it is run so."""
        return of.on_vllm(self.quantization, self.kv_cache_dtype, self.tensor_parallel_size)


def _engine_args(values: Iterable[str]) -> dict[str, Any]:
    """Of ``--engine-arg NAME=VALUE``; a value is JSON where it can be read so, else a text."""
    found: dict[str, Any] = {}
    for value in values:
        name, _, text = value.partition("=")
        name = name.strip().replace("-", "_")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
