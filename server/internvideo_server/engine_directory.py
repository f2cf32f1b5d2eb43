"""What the launcher reads from an engine directory beside the limits: its engine, its ranks, the memory for its prompt tables."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib import util
from pathlib import Path
from typing import Any

from internvideo_server.limits import LimitsError

GRAMMAR_FILE = "xgrammar_tokenizer_info.json"

_GUIDES = ("guided_decoding_guide_type", "guided_decoding_guide")


class EngineKind(StrEnum):
    """What stands behind the model `tensorrt_llm`; its parameter ``engine``."""

    TENSORRT_LLM = "tensorrt_llm"  # NVIDIA's C++ backend
    EMBEDDED = "embedded"  # the Python backend of server/backends, on transformers
    VLLM = "vllm"  # the same on vLLM

    @classmethod
    def choose(cls, wanted: str, engine: Path, *, gpu: bool) -> EngineKind:
        """The engine for a directory.

        Args:
            wanted: The setting ``llm_engine``.
            engine: The engine directory.
            gpu: Whether the language model runs on a GPU.

        Raises:
            LimitsError: The directory was made for another engine, or vLLM is not installed.
        """
        installed = util.find_spec("vllm") is not None
        if any(engine.glob("rank*.engine")):
            if wanted not in ("auto", cls.TENSORRT_LLM):
                raise LimitsError(f"{engine} holds an engine of TensorRT-LLM, which --llm-engine {wanted} cannot run")
            return cls.TENSORRT_LLM
        if wanted == "auto":
            return cls.VLLM if gpu and installed else cls.EMBEDDED
        if wanted == cls.TENSORRT_LLM:
            raise LimitsError(f"{engine} holds no engine of TensorRT-LLM: build_scripts/build.py makes one")
        if wanted == cls.VLLM and not installed:
            raise LimitsError("--llm-engine vllm needs vLLM: make setup-vllm")
        return cls(wanted)

    def unsupported_inputs(self, engine: Path) -> tuple[str, ...]:
        """Inputs of `tensorrt_llm` without effect on this kind with that engine directory: clients must not send them."""
        if self is not EngineKind.TENSORRT_LLM:
            return ()
        return ("min_p", "num_top_logprobs", *(() if (engine / GRAMMAR_FILE).is_file() else _GUIDES))


def pretrained_config(engine: Path) -> dict[str, Any]:
    """``pretrained_config`` of the engine's config.json, {} where there is none."""
    document = json.loads((engine / "config.json").read_text())
    section = document.get("pretrained_config") if isinstance(document, dict) else None
    return section if isinstance(section, dict) else {}


def world_size(engine: Path) -> int:
    """Ranks of a TensorRT-LLM engine, a process and a GPU each; 1 for the embedded engine.

    Raises:
        LimitsError: config.json and the files disagree.
    """
    ranks = sorted(file.name for file in engine.glob("rank*.engine"))
    if not ranks:
        return 1
    size = int(pretrained_config(engine).get("mapping", {}).get("world_size", 1))
    if ranks != sorted(f"rank{rank}.engine" for rank in range(size)):
        raise LimitsError(
            f"{engine}/config.json says {size} ranks, the directory holds {', '.join(ranks)}: build it anew "
            "(build_scripts/build.py)"
        )
    return size


def cuda_pool_bytes(region_count: int, region_bytes: int) -> int:
    """Triton's pool for tensors between models: each region's table as `vit` sent it, and again as the engine takes it.

    Where it is exhausted Triton hands tables over through host memory: slower, not wrong.
    """
    return max(2 * region_count * region_bytes, 64 << 20)
