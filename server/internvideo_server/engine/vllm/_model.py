"""The exported Llama with a modality of its own: rows that are embeddings already, from the request's prompt table.

No processor of Hugging Face takes part: prompts come ready (`_prompt.py`). (vLLM's ``prompt_embeds`` would hash and copy whole
prompts; items by identity let its prefix and encoder caches know equal videos.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo

MODALITY = "video"
_NAME = "PromptTableLlama"


class _Info(BaseProcessingInfo):
    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {MODALITY: int(self.get_hf_config().max_table_rows)}


class _Dummies(BaseDummyInputsBuilder):
    """Abstract in vLLM; ``skip_mm_profiling`` leaves it unused."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        raise NotImplementedError

    def get_dummy_mm_data(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class _Processor(BaseMultiModalProcessor):
    """Abstract in vLLM; ready prompts leave it unused."""

    def _get_mm_fields_config(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=_Dummies)
class PromptTableLlama(LlamaForCausalLM, SupportsMultiModal):
    """Llama whose placeholders are filled with the rows that come with the request."""

    embed_input_ids = SupportsMultiModal.embed_input_ids  # puts rows among the tokens' own embeddings

    def get_language_model(self) -> Any:
        """The part without the table."""
        return self.model

    def embed_multimodal(self, rows: list[list[torch.Tensor]], **_: Any) -> list[torch.Tensor]:
        """Rows of each item [rows, hidden], as they came."""
        return [item[0] for item in rows]


def register() -> None:
    """Make the class known to vLLM; also its plugin of this project, for the processes that vLLM starts for several GPUs.

    By the class itself: vLLM would look at a "module:Class" in a subprocess of ``sys.executable``, which in Triton's stub is no
    Python.
    """
    ModelRegistry.register_model(_NAME, PromptTableLlama)


def model_overrides(max_rows: int) -> dict[str, Any]:
    """The ``hf_overrides`` that choose it for an exported ``llama/``; ``max_rows`` of one request's table."""
    return {"architectures": [_NAME], "max_table_rows": max_rows}
