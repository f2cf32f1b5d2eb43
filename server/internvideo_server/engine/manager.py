"""The one place that knows transformers' continuous batching (5.17 to 5.23; the interface moves between releases)."""

from __future__ import annotations

import logging
import math
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import AttentionInterface
from transformers.utils.logging import disable_progress_bar

from internvideo_server.limits import EngineLimits
from internvideo_server.memory import kv_bytes_per_token

from ._attention import DecodeStep, PackedStep, PagedCache, Step, attend
from ._sampling import RequestSampler, Sampler
from ._tables import PromptTables
from .batch import BatchOutput
from .request import GenerationRequest
from .sequence_state import SequenceState

_log = logging.getLogger(__name__)
_TOKENS_PER_PAGE = 32  # of the KV cache, the unit of prefix sharing; TensorRT-LLM's default, too
# The scheduler starts no request while less than this share of the cache is free, so that much is added to what the batch needs.
_SAFETY_MARGIN = 0.15
# Prompt tokens taken in one step: a whole prompt of 160 frames on a GPU; on a CPU others wait too long for it.
_MAX_STEP_TOKENS = {"cuda": 4096, "cpu": 512}
_ATTENTION = "internvideo_paged"
AttentionInterface.register(_ATTENTION, attend)


class _TurnScheduler(FIFOScheduler):
    """Answers under way first, then prompts by turns: in one step the shortest first, in the next the oldest.

    A prompt takes what a step has left, so one of 1,024 frames would keep all later ones waiting for dozens of steps; and many
    short ones must not keep it waiting either.

    It also says when a cancelled request has left the batch: the manager delivers nothing for it. Only then may its prompt table
    go. A pass that still held the request would compute its keys from other rows, and the prefix cache would give them to the
    next request about the same video.
    """

    on_dropped: Callable[[str], None]
    _shortest_first = False

    def _process_candidates(self, candidates: list[Any], *rest: Any) -> Any:
        self._shortest_first = not self._shortest_first
        if self._shortest_first:  # none is left of the prompts of answers under way
            candidates = sorted(candidates, key=lambda state: len(state.remaining_prefill_tokens))
        return super()._process_candidates(candidates, *rest)

    def clear_cancelled_requests(self) -> list[Any]:
        """Called by the generation thread between two passes."""
        dropped: list[Any] = super().clear_cancelled_requests()
        for state in dropped:
            self.on_dropped(state.request_id)
        return dropped


class _PagedForward:
    """Stands in for the model's ``forward``: turns the manager's arguments into ours."""

    def __init__(self, model: Any, tables: PromptTables, processor: Any) -> None:
        self.tokens = 0  # that were computed so far
        self._model, self._forward = model, model.forward
        self._tables, self._io = tables, processor.inputs_and_outputs
        self._io.block_table = self._io.block_table.cpu()  # filled by single pages: one copy to the GPU is enough
        self.cache = _layers_of(processor.cache, model.config.num_hidden_layers)

    def __call__(
        self,
        input_ids: torch.Tensor,  # [1, new]
        position_ids: torch.Tensor,  # [1, new]
        logits_to_keep: torch.Tensor,  # [rows]
        block_table: torch.Tensor | None,  # [1, requests, pages] where each request has one new token
        cu_seq_lens_q: torch.Tensor,
        cu_seq_lens_k: torch.Tensor | dict[str, torch.Tensor],
        read_index: list[torch.Tensor],
        write_index: list[torch.Tensor],
        **_: Any,
    ) -> CausalLMOutputWithPast:
        self._tables.apply_changes()
        self.tokens += input_ids.shape[1]
        step: Step
        if block_table is not None:
            # 5.17 calls it max_seqlen_k. By kind of attention, of which there is one.
            longest = max((getattr(self._io, "max_length_k", None) or self._io.max_seqlen_k).values())
            pages = math.ceil(longest / _TOKENS_PER_PAGE)
            step = DecodeStep(self.cache, position_ids[0], block_table[0, :, :pages].to(input_ids.device))
            keep = torch.arange(input_ids.shape[1], device=input_ids.device)
        else:
            cu_keys = cu_seq_lens_k if isinstance(cu_seq_lens_k, torch.Tensor) else cu_seq_lens_k["full_attention"]
            step = PackedStep(self.cache, write_index[0], read_index[0], cu_seq_lens_q, cu_keys)
            keep = logits_to_keep
        try:
            return CausalLMOutputWithPast(logits=self._logits(step, input_ids, position_ids, keep))
        except torch.OutOfMemoryError:  # the tower's, for a moment, or another program's
            _log.warning("no memory for a step of %d tokens: it is computed in pieces", input_ids.shape[1])
        torch.cuda.empty_cache()
        vocab_size = self._model.config.vocab_size
        logits = torch.empty(1, len(keep), vocab_size, dtype=self._model.dtype, device=keep.device)
        for new, piece in step.pieces():
            mine = (keep >= new.start) & (keep < new.stop)  # in whatever order they are wanted
            logits[:, mine] = self._logits(piece, input_ids[:, new], position_ids[:, new], keep[mine] - new.start)
        return CausalLMOutputWithPast(logits=logits)

    def _logits(self, step: Step, input_ids: torch.Tensor, position_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """[1, rows, vocab_size] of the new tokens ``keep`` [rows]."""
        new: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, "logits_to_keep": keep}
        logits: torch.Tensor = self._forward(**new, use_cache=False, step=step).logits
        return logits


def _layers_of(cache: Any, layers: int) -> PagedCache:
    """The manager's cache as tensors of tokens, layer by layer."""
    if hasattr(cache, "cache_allocators"):
        (allocator,) = cache.cache_allocators.values()
        both = [allocator.get_cache_for_block_table(layer) for layer in range(layers)]
    else:  # 5.17
        both = [(cache.key_cache[layer].zero_(), cache.value_cache[layer].zero_()) for layer in range(layers)]  # else garbage
    keys, values = ([pages.view(-1, *pages.shape[-2:]) for pages in side] for side in zip(*both, strict=True))
    return PagedCache(keys, values, _TOKENS_PER_PAGE)


def load_language_model(llama_dir: Path, dtype: str, device: torch.device) -> LlamaForCausalLM:
    """A LlamaForCausalLM directory (``build_scripts/export_llm.py``), on its device."""
    disable_progress_bar()  # else it draws "Loading weights" into the server's log
    model: Any = LlamaForCausalLM.from_pretrained(
        llama_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    )
    moved: LlamaForCausalLM = model.to(device)
    return moved


class BatchManager:
    """Runs a language model as a batch that requests enter and leave at every step.

    Args:
        model: On its device, with "sdpa" attention. It is changed: what uses it without this manager no longer works.
        limits: Sizes the KV cache: the manager's own default takes most of the free memory.
        share_prefixes: Reuse the KV cache of equal id prefixes (``enable_kv_cache_reuse``).
        on_dropped: Called with the name of each cancelled answer once no pass holds it; by the generation thread.
        kv_bytes: For keys and values; None: a full batch of the longest requests, which is also the most that is taken.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        limits: EngineLimits,
        *,
        share_prefixes: bool,
        on_dropped: Callable[[str], None],
        kv_bytes: int | None = None,
    ) -> None:
        self._model: Any = model
        self.tables = PromptTables(self._model.get_input_embeddings(), limits.max_batch_size, limits.max_rows)
        self._model.set_input_embeddings(self.tables)
        self._model._get_logits_processor = lambda _config: LogitsProcessorList([RequestSampler()])
        self._slots: dict[str, int] = {}  # of the prompt tables, by name
        self._on_dropped = on_dropped
        mapping: dict[str, Any] = SCHEDULER_MAPPING
        mapping["turns"] = type("Scheduler", (_TurnScheduler,), {"on_dropped": staticmethod(self._dropped)})
        pages = math.ceil(limits.max_seq_len / _TOKENS_PER_PAGE)
        wanted = limits.max_batch_size * pages
        if kv_bytes is not None:
            page_bytes = _TOKENS_PER_PAGE * kv_bytes_per_token(vars(model.config), 1, 1, limits.element_bytes)
            wanted = max(pages, min(wanted, kv_bytes // page_bytes))
        self._manager: Any = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                **{
                    "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size": _TOKENS_PER_PAGE
                },  # 5.17's name
                num_blocks=math.ceil(wanted / (1 - _SAFETY_MARGIN)),
                safety_margin=_SAFETY_MARGIN,
                max_batch_tokens=max(_MAX_STEP_TOKENS[model.device.type], limits.max_batch_size),
                max_requests_per_batch=limits.max_batch_size,
                allow_block_sharing=share_prefixes,
                scheduler_type="turns",
                # The sampler looks at each request's tokens before every step: no step may run ahead, none be replayed.
                use_async_batching=False,
                use_cuda_graph=False,
            ),
        )
        self._manager.logit_processor.tensors_required = 1  # the list counts only processors that it made itself
        # The manager knows attention functions by their names: for one that it does not know it makes no masks, but it would
        # refuse it above. Block tables for steps that only decode are for flash-attn alone; that, too, has been decided.
        self._model.set_attn_implementation(_ATTENTION)
        self._manager.continuous_batching_config.max_blocks_per_request = pages
        self._manager.warmup()  # without graphs only makes the cache: what does not fit fails here, not in the thread
        self._model.forward = _PagedForward(self._model, self.tables, self._manager.batch_processor)
        self._manager.start()

    def add(self, name: str, request: GenerationRequest, state: SequenceState) -> None:
        """Start an answer; see :class:`Batch`."""
        slot, ids = self.tables.admit(request.input_ids, request.extra_ids, request.table)
        self._slots[name] = slot
        self._manager.add_request(
            ids,
            request_id=name,
            max_new_tokens=request.max_new_tokens,
            streaming=True,
            eos_token_id=[state.params.end_id, *(word[0] for word in request.stop_words if len(word) == 1)],
            sampler=Sampler(state),
        )

    def cancel(self, name: str) -> None:
        """Ask for the end of an answer; see :class:`Batch`."""
        self._manager.cancel_request(name)

    def next_output(self, timeout: float) -> BatchOutput | None:
        """The next output of any answer; see :class:`Batch`."""
        try:
            output = self._manager.output_router.output_queue.get(timeout=timeout)
        except queue.Empty:
            return None
        finished = bool(output.is_finished())
        if finished:
            self._release(output.request_id)
        return BatchOutput(output.request_id, output.generated_tokens, finished, output.error)

    @property
    def alive(self) -> bool:
        """Whether the generation thread runs."""
        return bool(self._manager.is_running())

    @property
    def cache_used(self) -> float | None:
        """Share of the KV cache that requests hold; see :class:`Batch`."""
        processor = self._manager.batch_processor
        return None if processor is None else 1.0 - float(processor.cache.compute_free_capacity())

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model; see :class:`Batch`."""
        return int(self._model.forward.tokens)

    @property
    def beats(self) -> int:
        """Layers that were computed; see :class:`Batch`."""
        return int(self._model.forward.cache.writes)

    def close(self) -> None:
        """End the generation thread; requests under way fail."""
        self._manager.stop(block=True, timeout=5.0, hard_stop=True)

    def _dropped(self, name: str) -> None:
        self._release(name)
        self._on_dropped(name)

    def _release(self, name: str) -> None:
        if (slot := self._slots.pop(name, None)) is not None:
            self.tables.release(slot)
