"""From an engine directory to a running engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from internvideo_server.limits import EngineLimits
from internvideo_server.memory import kv_cache_bytes

from ._engine import Engine, Report, nothing_reported
from .batch import Batch
from .grammar import GrammarCompiler
from .vllm import VllmBatch, VllmOptions


def load_engine(
    engine_dir: Path,
    device: torch.device,
    *,
    max_queue_size: int,
    reuse: bool,
    cancellation_check_period: float,
    report: Report = nothing_reported,
    on_death: Callable[[], None] = lambda: None,
    vllm: VllmOptions | None = None,
    gpu_memory: float | None = None,
) -> Engine:
    """The engine of a directory that ``build_scripts/export_llm.py`` wrote: ``config.json`` (limits) and ``llama/``.

    Args:
        engine_dir: The directory.
        device: Where the language model runs.
        max_queue_size: See :class:`Engine`, as for the others.
        reuse: Share the KV cache of equal prompts' beginnings.
        cancellation_check_period: In seconds.
        report: See `Engine`.
        on_death: See `Engine`.
        vllm: Run it on vLLM, so; None: on transformers.
        gpu_memory: GiB of the GPU for this and the vision tower together; None: what is free less 2.

    Raises:
        LimitsError: The directory's config.json is missing or broken.
        ValueError: The GPU has not the room for one request of full length.
        RuntimeError: vLLM did not start.
    """
    limits = EngineLimits.from_engine_dir(engine_dir)
    end_token = _end_token(engine_dir)
    if vllm is not None:

        def make_batch(on_dropped: Callable[[str], None]) -> Batch:
            return VllmBatch(engine_dir, limits, device, vllm, end_token, share_prefixes=reuse, on_dropped=on_dropped)
    else:
        from .manager import BatchManager, load_language_model  # transformers' part, which vLLM does without

        kv_bytes = None
        if device.type == "cuda":
            kv_bytes = kv_cache_bytes(engine_dir, limits, torch.cuda.mem_get_info(device)[0], gpu_memory)
        model = load_language_model(engine_dir / "llama", limits.dtype, device)

        def make_batch(on_dropped: Callable[[str], None]) -> Batch:
            return BatchManager(model, limits, share_prefixes=reuse, on_dropped=on_dropped, kv_bytes=kv_bytes)

    return Engine(
        make_batch,
        limits,
        GrammarCompiler(engine_dir / "tokenizer.json", limits.vocab_size, end_token),
        max_queue_size=max_queue_size,
        reuse=reuse,
        cancellation_check_period=cancellation_check_period,
        report=report,
        on_death=on_death,
    )


def _end_token(engine_dir: Path) -> int:
    """The model's own end token, by the exported ``generation_config.json``."""
    document = json.loads((engine_dir / "llama" / "generation_config.json").read_text(encoding="utf-8"))
    ids = document["eos_token_id"]
    return int(ids[0] if isinstance(ids, list) else ids)
