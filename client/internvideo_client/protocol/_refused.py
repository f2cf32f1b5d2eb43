"""Fields of OpenAI, vLLM, SGLang, TensorRT-LLM, LMDeploy and TGI that change an answer and that this server does not have.

A value that asks for nothing (null, false, empty, the field's own default) is accepted: clients send their defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_INSTEAD = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "regex": "use structured_outputs",
    "ebnf": "use structured_outputs",
    "guided_decoding_backend": "the server has one",
    "structural_tag": "use structured_outputs",
    "truncate_prompt_tokens": "shorten the prompt",
    "stop_regex": "use stop",
    "chat_template": "the model has one",
    "extra_body": "its fields stand beside the others",
    "extra_args": "its fields stand beside the others",
    "options": "its fields stand beside the others",
    "generation_config": "its fields stand beside the others",
    "sampling_params": "its fields stand beside the others",
    "json_schema": "use response_format",
    "format": "use response_format",
    "max_new_tokens": "use max_tokens",
    "max_length": "use max_tokens",
    "n_predict": "use max_tokens",
    "num_predict": "use max_tokens",
    "min_new_tokens": "use min_tokens",
    "repeat_penalty": "use repetition_penalty",
    "stop_sequences": "use stop",
    "num_return_sequences": "use n",
    "system": "use a message with role system",
    "system_prompt": "use a message with role system",
    "num_frames": "it stands in video_url, or in media_io_kwargs.video",
    "nframes": "use num_frames in video_url",
    "max_frames": "use num_frames in video_url",
    "fps": "it stands in video_url, or in media_io_kwargs.video",
    "video_fps": "use fps in video_url",
}

#: Name -> values beside null, false and empty ones that ask for what happens anyway.
_REFUSED: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "functions": (),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "reasoning": ({"effort": "none"},),
    "verbosity": ("medium",),
    "web_search_options": (),
    "suffix": (),
    "background": (),
    "conversation": (),
    "prompt_id": (),
    # vLLM
    "use_beam_search": (),
    "beam_width": (1,),
    "early_stopping": (),
    "length_penalty": (1, 0),
    "truncate_prompt_tokens": (-1,),
    "truncation_side": (),
    "continue_final_message": (),
    "documents": (),
    "chat_template": (),
    "structural_tag": (),
    "guided_decoding_backend": ("auto",),
    "guided_whitespace_pattern": (),
    "prompt_embeds": (),
    "kv_transfer_params": (),
    "vllm_xargs": (),
    "logits_processors": (),
    "logits_processor_pattern": (),
    "allowed_tokens": (),
    "thinking_token_budget": (),
    "thinking": ({"type": "disabled"},),
    "enable_thinking": (),
    "separate_reasoning": (True,),
    "include_reasoning": (True,),
    "repetition_detection": (),
    "priority": (0,),
    "data_parallel_rank": (),
    "return_token_ids": (),
    "bad_words_ids": (),
    "mm_embeds": (),
    # SGLang, LMDeploy, TGI, llama.cpp
    "stop_regex": (),
    "regex": (),
    "ebnf": (),
    "no_stop_trim": (),
    "lora_path": (),
    "lora_request": (),
    "custom_logit_processor": (),
    "custom_params": (),
    "return_hidden_states": (),
    "session_params": (),
    "input_ids": (),
    "input_embeds": (),
    "image_data": (),
    "video_data": (),
    "audio_data": (),
    "max_dynamic_patch": (),
    "min_dynamic_patch": (),
    "adapter_name": (),
    "random_seed": (),
    "typical_p": (1,),
    "typical": (1,),
    "top_n_tokens": (),
    "decoder_input_details": (),
    "watermark": (),
    "top_a": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "eta_cutoff": (0,),
    "epsilon_cutoff": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "smoothing_factor": (0,),
    "grammar": (),
    "samplers": (),
    # TensorRT-LLM
    "top_p_min": (),
    "top_p_decay": (),
    "top_p_reset_ids": (),
    "lookahead_config": (),
    "beam_search_diversity_rate": (),
    "prompt_ignore_length": (),
    "embedding_bias": (),
    "disaggregated_params": (),
    "num_logprobs": (),
    # Names of other libraries and servers for what goes by another name, or stands elsewhere, here
    **dict.fromkeys(("extra_body", "extra_args", "options", "generation_config", "sampling_params"), ()),
    **dict.fromkeys(("json_schema", "format", "system", "system_prompt", "stop_sequences"), ()),
    **dict.fromkeys(("max_new_tokens", "max_length", "n_predict", "num_predict"), (-1,)),
    **dict.fromkeys(("num_frames", "nframes", "max_frames", "fps", "video_fps"), ()),
    **dict.fromkeys(("repeat_penalty", "num_beams", "num_return_sequences"), (1,)),
    **dict.fromkeys(("min_new_tokens", "min_length"), ()),
}
#: Fields that are true where nothing is asked for.
_TRUE = {
    "add_generation_prompt": "an answer begins with its prompt",
    "detokenize": "answers are text",
}


def asks(value: Any) -> bool:
    """Whether a value asks for something: null, false, 0, empty ones and objects of nothing else do not."""
    return any(map(asks, value.values())) if isinstance(value, dict) else bool(value)


def refused_fields(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field of a body that would be ignored in silence, with the reason to tell."""
    for name, value in body.items():
        if name not in _REFUSED or not asks(value):
            continue
        if not any(value == each and type(value) in (type(each), float, int) for each in _REFUSED[name]):
            hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ": leave it out"
            yield name, f"not supported by this server{hint}"
    for name, reason in _TRUE.items():
        if body.get(name) is False:
            yield name, f"not supported by this server: {reason}"
    if asks(body.get("chat_template_kwargs")):
        yield "chat_template_kwargs", "not supported by this server: its chat template has no arguments"
    if isinstance(body.get("modalities"), list) and set(map(str, body["modalities"])) - {"text"}:
        yield "modalities", "this server answers in text only"
    if body.get("spaces_between_special_tokens") is False and body.get("skip_special_tokens") is False:
        yield "spaces_between_special_tokens", "not supported by this server: leave it out"
