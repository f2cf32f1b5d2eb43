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

from ..limits import EngineLimits
from ._attention import CurrentStep, DecodeStep, PackedStep, PagedCache, Step, attend
from ._graphs import DecodeGraphs
from ._sampling import RequestSampler, Sampling
from ._tables import PromptTables

# Tokens of a KV page, the unit of prefix sharing. TensorRT-LLM's default is 32, too; a GPU reads few large pages faster.
_TOKENS_PER_PAGE = {"cpu": 32, "cuda": 256}
# The scheduler starts no request while less than this share of the cache is free, so that much is added to what the batch needs.
_SAFETY_MARGIN = 0.15
# Prompt tokens taken in one step: a whole prompt of 160 frames on a GPU; on a CPU others wait too long for it.
_MAX_STEP_TOKENS = {"cuda": 4096, "cpu": 512}
_ATTENTION = "internvideo_paged"
AttentionInterface.register(_ATTENTION, attend)
_log = logging.getLogger(__name__)


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


class _PagedForward:
    """Stands in for the model's ``forward``: turns the manager's arguments into ours, and decodes through graphs.

    On CUDA the decoder layers are compiled, all with one code, before anything else is done.
    """

    def __init__(self, model: Any, tables: PromptTables, processor: Any, limits: EngineLimits, page_size: int) -> None:
        self._forward, self._tables, self._io = model.forward, tables, processor.inputs_and_outputs
        self._io.block_table = self._io.block_table.cpu()  # filled by single pages: one copy to the GPU is enough
        self._cache = _layers_of(processor.cache, model.config.num_hidden_layers, page_size)
        max_pages = math.ceil(limits.max_seq_len / page_size)
        self._graphs = DecodeGraphs(self._decode, self._cache, limits.max_batch_size, max_pages)
        self._step = CurrentStep()
        if model.device.type == "cuda":
            _compile_layers(model)
            try:
                self._warm_up()
            except Exception as error:  # no C compiler, say; what is not the compiler's fault fails again
                _log.warning("the language model runs without torch.compile, which is slower: %s", error)
                torch.compiler.set_stance("force_eager")
                self._warm_up()

    @torch.no_grad()
    def _warm_up(self) -> None:
        """What is compiled, loaded or captured at the first use: before the engine says that it is ready."""
        self._graphs.warm_up()
        device, trash = self._cache.keys[0].device, self._cache.trash_page * self._cache.page_size
        new = torch.arange(self._cache.page_size, device=device)
        cu = torch.tensor([0, len(new)], dtype=torch.int32, device=device)
        self._packed(new[None], new[None], new[-1:], PackedStep(self._cache, trash + new, new[:0], cu, cu, len(new), len(new)))
        torch.cuda.synchronize(device)

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
        longest = max(_lengths(self._io, "k").values())
        if block_table is not None:
            logits = self._graphs(input_ids[0], position_ids[0], block_table[0], longest)[None]
        else:
            cu_keys = cu_seq_lens_k if isinstance(cu_seq_lens_k, torch.Tensor) else cu_seq_lens_k["full_attention"]
            step = PackedStep(
                self._cache,
                write=write_index[0],
                read=read_index[0],
                cu_queries=cu_seq_lens_q,
                cu_keys=cu_keys,
                max_queries=_lengths(self._io, "q"),
                max_keys=longest,
            )
            logits = self._packed(input_ids, position_ids, logits_to_keep, step)
        return CausalLMOutputWithPast(logits=logits)

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, step: DecodeStep) -> torch.Tensor:
        return self._packed(ids[None], positions[None], 0, step)[0]

    def _packed(self, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor | int, step: Step) -> torch.Tensor:
        """Ids [1, new] -> logits [1, kept, vocab]."""
        self._step.step = step
        positions = positions.clone()  # no view: compiled layers look at what a view is of
        output = self._forward(input_ids=ids, position_ids=positions, logits_to_keep=keep, use_cache=False, step=self._step)
        logits: torch.Tensor = output.logits
        return logits


def _compile_layers(model: Any) -> None:
    """One compiled code serves all layers, because what differs between them is left out of it: the attention's cache."""
    AttentionInterface.register(_ATTENTION, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
    for layer in model.model.layers:
        layer.compile(dynamic=True, options={"coordinate_descent_tuning": True})  # which also makes matrix-vector kernels


def _lengths(io: Any, side: str) -> Any:
    """The longest request's queries ("q") or keys ("k", by kind of attention)."""
    return getattr(io, f"max_length_{side}" if hasattr(io, "max_length_q") else f"max_seqlen_{side}")  # 5.17's name


def _layers_of(cache: Any, layers: int, page_size: int) -> PagedCache:
    """The manager's cache as tensors of tokens, layer by layer."""
    if hasattr(cache, "cache_allocators"):
        (allocator,) = cache.cache_allocators.values()
        both = [allocator.get_cache_for_block_table(layer) for layer in range(layers)]
        trash = allocator.write_trash_index
    else:  # 5.17
        both = [(cache.key_cache[layer].zero_(), cache.value_cache[layer].zero_()) for layer in range(layers)]  # else garbage
        trash = cache.write_trash_index
    keys, values = ([pages.view(-1, *pages.shape[-2:]) for pages in side] for side in zip(*both, strict=True))
    return PagedCache(keys, values, page_size, trash // page_size)


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
        on_dropped: Called with the id of each cancelled request once no pass holds it; by the generation thread.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        limits: EngineLimits,
        *,
        share_prefixes: bool,
        on_dropped: Callable[[str], None],
    ) -> None:
        self._model: Any = model
        self.tables = PromptTables(self._model.get_input_embeddings(), limits.max_batch_size, limits.max_rows)
        self._model.set_input_embeddings(self.tables)
        self._model._get_logits_processor = lambda _config: LogitsProcessorList([RequestSampler()])
        mapping: dict[str, Any] = SCHEDULER_MAPPING
        mapping["reporting"] = type("Scheduler", (_ReportingScheduler,), {"on_dropped": staticmethod(on_dropped)})
        page_size = _TOKENS_PER_PAGE[model.device.type]
        pages = math.ceil(limits.max_seq_len / page_size)
        self._manager: Any = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                **{"page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size": page_size},  # 5.17's name
                num_blocks=math.ceil(limits.max_batch_size * pages / (1 - _SAFETY_MARGIN)),
                safety_margin=_SAFETY_MARGIN,
                max_batch_tokens=max(_MAX_STEP_TOKENS[model.device.type], limits.max_batch_size),
                max_requests_per_batch=limits.max_batch_size,
                allow_block_sharing=share_prefixes,
                scheduler_type="reporting",
                # The sampler looks at each request's tokens before every step: no step may run ahead, none be replayed
                # (the manager's graphs would hold the sampling; ours hold the model alone).
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
        self._model.forward = _PagedForward(self._model, self.tables, self._manager.batch_processor, limits, page_size)
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
