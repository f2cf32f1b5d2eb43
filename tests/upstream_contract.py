"""The tensors of NVIDIA's C++ ``tensorrtllm`` backend, written down as facts.

Source: ``triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt`` of TensorRT-LLM 1.x (commit 0c8de69a), the
parameters as ``inflight_batcher_llm/src/{model_state,model_instance_state}.cc`` read them. Dtypes that the template leaves to
the deployment are None.
"""

from __future__ import annotations

from typing import NamedTuple


class Tensor(NamedTuple):
    """``scalar``: dims [1] reshaped to []; ``ragged``: allow_ragged_batch; ``left_out``: why our file does without it."""

    dtype: str | None
    dims: tuple[int, ...]
    optional: bool = True
    scalar: bool = False
    ragged: bool = False
    left_out: str = ""


def _scalar(dtype: str, *, optional: bool = True, left_out: str = "") -> Tensor:
    return Tensor(dtype, (1,), optional=optional, scalar=True, left_out=left_out)


def _ragged(dtype: str | None, *dims: int, left_out: str = "") -> Tensor:
    return Tensor(dtype, dims, ragged=True, left_out=left_out)


_ENCODER = "encoder-decoder models only"
_SPECULATIVE = "speculative decoding: there is no draft model"
_LORA = "the model has no adapters"
_DISAGGREGATED = "context and generation run in one engine"
_BEAMS = "max_beam_width is 1"
_GATHER = "the engine is built without gathering logits"
_OTHER = "another architecture's positions or attention"
_RETENTION = "blocks are kept by recency"

INPUTS: dict[str, Tensor] = {
    "input_ids": _ragged("INT32", -1),
    "encoder_input_features": _ragged(None, -1, -1, left_out=_ENCODER),
    "encoder_output_lengths": _scalar("INT32", left_out=_ENCODER),
    "input_lengths": _scalar("INT32", optional=False),
    "request_output_len": _scalar("INT32", optional=False),
    "num_return_sequences": _scalar("INT32"),
    "draft_input_ids": _ragged("INT32", -1, left_out=_SPECULATIVE),
    "decoder_input_ids": _ragged("INT32", -1, left_out=_ENCODER),
    "decoder_input_lengths": _scalar("INT32", left_out=_ENCODER),
    "draft_logits": _ragged(None, -1, -1, left_out=_SPECULATIVE),
    "draft_acceptance_threshold": _scalar("FP32", left_out=_SPECULATIVE),
    "end_id": _scalar("INT32"),
    "pad_id": _scalar("INT32"),
    "stop_words_list": _ragged("INT32", 2, -1),
    "bad_words_list": _ragged("INT32", 2, -1),
    "embedding_bias": _ragged("FP32", -1),
    "beam_width": _scalar("INT32"),
    "temperature": _scalar("FP32"),
    "runtime_top_k": _scalar("INT32"),
    "runtime_top_p": _scalar("FP32"),
    "runtime_top_p_min": _scalar("FP32", left_out="the backend looks it up under another name and ignores it"),
    "runtime_top_p_decay": _scalar("FP32", left_out="factual-nucleus sampling is not offered"),
    "runtime_top_p_reset_ids": _scalar("INT32", left_out="factual-nucleus sampling is not offered"),
    "len_penalty": _scalar("FP32", left_out=_BEAMS),
    "early_stopping": _scalar("BOOL", left_out="the backend reads four bytes of a tensor of one"),
    "repetition_penalty": _scalar("FP32"),
    "min_tokens": _scalar("INT32"),
    "beam_search_diversity_rate": _scalar("FP32", left_out=_BEAMS),
    "presence_penalty": _scalar("FP32"),
    "frequency_penalty": _scalar("FP32"),
    "seed": _scalar("UINT64"),
    "return_log_probs": _scalar("BOOL"),
    "return_context_logits": _scalar("BOOL", left_out=_GATHER),
    "return_generation_logits": _scalar("BOOL", left_out=_GATHER),
    "return_perf_metrics": _scalar("BOOL"),
    "return_num_input_tokens": _scalar("BOOL"),
    "return_num_output_tokens": _scalar("BOOL", left_out="the client counts what it receives"),
    "exclude_input_in_output": _scalar("BOOL"),
    "stop": _scalar("BOOL"),
    "streaming": _scalar("BOOL"),
    "prompt_embedding_table": _ragged(None, -1, -1),
    "prompt_table_extra_ids": _ragged("UINT64", -1),
    "prompt_vocab_size": _scalar("INT32"),
    "cross_attention_mask": _ragged("BOOL", -1, -1, left_out=_OTHER),
    "mrope_rotary_cos_sin": Tensor("FP32", (-1,), left_out=_OTHER),
    "mrope_position_deltas": Tensor("INT64", (1,), left_out=_OTHER),
    "lora_task_id": _scalar("UINT64", left_out=_LORA),
    "lora_weights": _ragged("FP16", -1, -1, left_out=_LORA),
    "lora_config": _ragged("INT32", -1, 3, left_out=_LORA),
    "context_phase_params": _ragged("UINT8", -1, left_out=_DISAGGREGATED),
    "skip_cross_attn_blocks": _ragged("BOOL", 1, left_out=_OTHER),
    "retention_token_range_starts": _ragged("INT32", -1, left_out=_RETENTION),
    "retention_token_range_ends": _ragged("INT32", -1, left_out=_RETENTION),
    "retention_token_range_priorities": _ragged("INT32", -1, left_out=_RETENTION),
    "retention_token_range_durations_ms": _ragged("INT32", -1, left_out=_RETENTION),
    "retention_decode_priority": _ragged("INT32", 1, left_out=_RETENTION),
    "retention_decode_duration_ms": _ragged("INT32", 1, left_out=_RETENTION),
    "guided_decoding_guide_type": _ragged("STRING", 1),
    "guided_decoding_guide": _ragged("STRING", 1),
    "lookahead_window_size": _ragged("INT32", 1, left_out=_SPECULATIVE),
    "lookahead_ngram_size": _ragged("INT32", 1, left_out=_SPECULATIVE),
    "lookahead_verification_set_size": _ragged("INT32", 1, left_out=_SPECULATIVE),
}

OUTPUTS: dict[str, Tensor] = {
    "output_ids": Tensor("INT32", (-1, -1)),
    "sequence_length": Tensor("INT32", (-1,)),
    "cum_log_probs": Tensor("FP32", (-1,)),
    "output_log_probs": Tensor("FP32", (-1, -1)),
    "context_logits": Tensor(None, (-1, -1), left_out=_GATHER),
    "generation_logits": Tensor(None, (-1, -1, -1), left_out=_GATHER),
    "batch_index": Tensor("INT32", (1,), left_out="one prompt a request"),
    "sequence_index": Tensor("INT32", (1,)),
    "context_phase_params": Tensor("UINT8", (-1,), left_out=_DISAGGREGATED),
    "kv_cache_alloc_new_blocks": Tensor("INT32", (1,)),
    "kv_cache_reused_blocks": Tensor("INT32", (1,)),
    "kv_cache_alloc_total_blocks": Tensor("INT32", (1,)),
    "arrival_time_ns": Tensor("INT64", (1,)),
    "first_scheduled_time_ns": Tensor("INT64", (1,)),
    "first_token_time_ns": Tensor("INT64", (1,)),
    "last_token_time_ns": Tensor("INT64", (1,)),
    "acceptance_rate": Tensor("FP32", (1,), left_out=_SPECULATIVE),
    "total_accepted_draft_tokens": Tensor("INT32", (1,), left_out=_SPECULATIVE),
    "total_draft_tokens": Tensor("INT32", (1,), left_out=_SPECULATIVE),
    "num_input_tokens": Tensor("INT32", (1,)),
    "num_output_tokens": Tensor("INT32", (1,), left_out="the client counts what it receives"),
}

# This project's own, which the backend never looks up: what it is sent of them has no effect there.
OWN_INPUTS: dict[str, Tensor] = {"min_p": _scalar("FP32"), "num_top_logprobs": _scalar("INT32")}
OWN_OUTPUTS: dict[str, Tensor] = {"top_logprob_ids": Tensor("INT32", (-1, -1)), "top_logprobs": Tensor("FP32", (-1, -1))}
OWN_PARAMETERS = {"engine", "unsupported_inputs", "gpu_memory"}
# Types at which the backend's reading of any input stops the server (`to_trt_datatype`), whether it knows the name or not.
FATAL_TYPES = {"UINT16", "INT16", "FP64"}

# Read outside any try block: without them the model does not load ("Cannot find parameter with name: ...").
MANDATORY_PARAMETERS = {"gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"}

# What the product relies on; name -> value.
REQUIRED_PARAMETERS = {
    "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    "gpt_model_type": "inflight_fused_batching",
    "max_beam_width": "1",
    "batch_scheduler_policy": "guaranteed_no_evict",
    "enable_kv_cache_reuse": "true",
    "enable_chunked_context": "true",
    "exclude_input_in_output": "true",
    "kv_cache_host_memory_bytes": "0",
    "guided_decoding_backend": "xgrammar",
}

# Everything that the backend (or, for the first two, Triton's Python-based backends) reads: a misspelt name has no effect.
KNOWN_PARAMETERS = {
    *("FORCE_CPU_ONLY_INPUT_TENSORS", "executor_worker_path"),
    *("gpt_model_type", "gpt_model_path", "encoder_model_path", "max_beam_width", "batch_scheduler_policy"),
    *("max_tokens_in_paged_kv_cache", "max_attention_window_size", "sink_token_length", "kv_cache_free_gpu_mem_fraction"),
    *("cross_kv_cache_fraction", "kv_cache_host_memory_bytes", "kv_cache_onboard_blocks", "enable_kv_cache_reuse"),
    *("secondary_offload_min_priority", "kv_event_buffer_max_size", "recv_poll_period_ms"),
    *("exclude_input_in_output", "cancellation_check_period_ms", "stats_check_period_ms"),
    *("iter_stats_max_iterations", "request_stats_max_iterations", "normalize_log_probs", "enable_chunked_context"),
    *("gpu_device_ids", "participant_ids", "num_nodes", "decoding_mode", "medusa_choices", "eagle_choices"),
    *("lora_cache_optimal_adapter_size", "lora_cache_max_adapter_size", "lora_cache_gpu_memory_fraction"),
    *("lora_cache_host_memory_bytes", "lora_prefetch_dir"),
    *("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
    *("gpu_weights_percent", "enable_context_fmha_fp32_acc", "multi_block_mode", "cuda_graph_mode", "cuda_graph_cache_size"),
    *("speculative_decoding_fast_logits", "tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"),
}
