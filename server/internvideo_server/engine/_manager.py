"""The one place that knows transformers' continuous batching (5.17 to 5.23; the interface moves between releases)."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.utils.logging import disable_progress_bar

from ..limits import EngineLimits
from ._sampling import RequestSampler, Sampling
from ._tables import PromptTables

# Tokens of a KV block, the unit of prefix sharing; TensorRT-LLM's default too.
_TOKENS_PER_BLOCK = 32
# The scheduler starts no request while less than this share of the cache is free, so that much is added to what the batch needs.
_SAFETY_MARGIN = 0.15
# Prompt tokens taken in one step. The manager's mask is [this, whole cache + this], so it must not follow the prompt's length.
_MAX_STEP_TOKENS = 512


class _ReportingScheduler(FIFOScheduler):
    """First in, first out, and says when a cancelled request has left the batch: the manager delivers nothing for it.

    Only then may its prompt table go. A pass that still held the request would compute its keys from other rows, and
    the prefix cache would give them to the next request about the same video.
    """

    on_dropped: Callable[[str], None]

    def clear_cancelled_requests(self) -> list[Any]:
        """Called by the generation thread between two passes."""
        dropped: list[Any] = super().clear_cancelled_requests()
        for state in dropped:
            self.on_dropped(state.request_id)
        return dropped


class BatchManager:
    """Loads the exported Llama directory and runs it as a batch that requests enter and leave at every step.

    Args:
        llama_dir: A LlamaForCausalLM directory (``build_scripts/export_llm.py``).
        limits: Sizes the KV cache: the manager's own default takes most of the free memory.
        device: Where to run.
        share_prefixes: Reuse the KV cache of equal id prefixes (``enable_kv_cache_reuse``).
        on_dropped: Called with the id of each cancelled request once no pass holds it; by the generation thread.
    """

    def __init__(
        self,
        llama_dir: Path,
        limits: EngineLimits,
        device: torch.device,
        *,
        share_prefixes: bool,
        on_dropped: Callable[[str], None],
    ) -> None:
        disable_progress_bar()  # else it draws "Loading weights" into the server's log
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            llama_dir, dtype=getattr(torch, limits.dtype), attn_implementation="sdpa", local_files_only=True
        )
        self._model.to(device)
        self.tables = PromptTables(self._model.get_input_embeddings(), limits.max_batch_size, limits.max_rows)
        self._model.set_input_embeddings(self.tables)
        self._model._get_logits_processor = lambda _config: LogitsProcessorList([RequestSampler()])
        mapping: dict[str, Any] = SCHEDULER_MAPPING
        mapping["reporting"] = type("Scheduler", (_ReportingScheduler,), {"on_dropped": staticmethod(on_dropped)})
        blocks = limits.max_batch_size * math.ceil(limits.max_seq_len / _TOKENS_PER_BLOCK)
        self._manager: Any = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                **{
                    "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size": _TOKENS_PER_BLOCK
                },  # 5.17's name
                num_blocks=math.ceil(blocks / (1 - _SAFETY_MARGIN)),
                safety_margin=_SAFETY_MARGIN,
                max_batch_tokens=max(_MAX_STEP_TOKENS, limits.max_batch_size),
                max_requests_per_batch=limits.max_batch_size,
                allow_block_sharing=share_prefixes,
                scheduler_type="reporting",
                # The sampler looks at each request's tokens before every step: no step may run ahead, none be replayed.
                use_async_batching=False,
                use_cuda_graph=False,
            ),
        )
        self._manager.logit_processor.tensors_required = 1  # the list counts only processors that it made itself
        self._manager.warmup()  # without graphs only makes the cache: what does not fit fails here, not in the thread
        self._manager.start()

    def add(self, request_id: str, ids: list[int], max_new_tokens: int, end_ids: list[int], sampling: Sampling) -> None:
        """Start a request.

        Where the generation thread has ended, nothing comes of it; ``alive`` tells.
        """
        self._manager.add_request(
            ids,
            request_id=request_id,
            max_new_tokens=max_new_tokens,
            streaming=True,
            eos_token_id=end_ids,
            sampling=sampling,
        )

    def cancel(self, request_id: str) -> None:
        """Ask for the end of a request. ``on_dropped`` tells when it is done; until then outputs may still come."""
        self._manager.cancel_request(request_id)

    def next_output(self, timeout: float) -> Any | None:
        """The next ``GenerationOutput`` of any request (all its tokens so far), or None after ``timeout`` seconds."""
        try:
            return self._manager.output_router.output_queue.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def alive(self) -> bool:
        """Whether the generation thread runs."""
        return bool(self._manager.is_running())

    def close(self) -> None:
        """End the generation thread; requests under way fail."""
        self._manager.stop(block=True, timeout=5.0, hard_stop=True)
