"""From what an engine shall serve to the command lines that make it. Nothing here runs or writes anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from internvideo_server.context import ANSWER_TOKENS, CPU_FRAMES, TEXT_TOKENS, frame_tokens
from internvideo_server.limits import FRAMES_PER_GROUP, MAX_POSITIONS, TOKENS_PER_FRAME, EngineLimits


class PlanError(ValueError):
    """The wishes contradict each other or the model."""


class Quantization(StrEnum):
    """Of the language model's weights; the vision tower and the prompt table keep the dtype."""

    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"
    INT4_AWQ = "int4-awq"

    @property
    def needs_calibration(self) -> bool:
        return self in (Quantization.FP8, Quantization.INT4_AWQ)


class EngineDtype(StrEnum):
    """Of activations and prompt table, and of weights that are not quantised."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class Sizes:
    """What the engine must hold. Lengths are in tokens.

    By the rule of `serve` (:mod:`internvideo_server.context`), number by number.

    Args:
        max_batch_size: Requests in flight at once.
        max_frames: Frames of one request, all its videos together.
        max_text_tokens: Everything else in the prompt: system text, questions, earlier turns.
        max_output_tokens: Answer.

    Raises:
        PlanError: A number is out of range, or they exceed the positions that the model was trained for.
    """

    max_batch_size: int = 2
    max_frames: int = CPU_FRAMES
    max_text_tokens: int = TEXT_TOKENS
    max_output_tokens: int = ANSWER_TOKENS

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.max_frames % FRAMES_PER_GROUP:
            raise PlanError(f"--max-frames must be a positive multiple of {FRAMES_PER_GROUP}, got {self.max_frames}")
        for flag, value in (
            ("--max-batch-size", self.max_batch_size),
            ("--max-text-tokens", self.max_text_tokens),
            ("--max-output-tokens", self.max_output_tokens),
        ):
            if value < 1:
                raise PlanError(f"{flag} must be at least 1, got {value}")
        if self.max_seq_len > MAX_POSITIONS:
            raise PlanError(
                f"{self.max_frames} frames, {self.max_text_tokens} tokens of text and {self.max_output_tokens} of answer make "
                f"max_seq_len {self.max_seq_len}, more than {MAX_POSITIONS}: the export drops the model's dynamic RoPE scaling, "
                "which TensorRT-LLM cannot read, and only up to there that changes nothing"
            )

    @property
    def max_input_len(self) -> int:
        return frame_tokens(self.max_frames) + self.max_text_tokens

    @property
    def max_seq_len(self) -> int:
        return self.max_input_len + self.max_output_tokens

    @property
    def max_num_tokens(self) -> int:
        """Tokens of one step over all requests: the longest prompt in one go, the usual case."""
        return self.max_input_len

    @property
    def max_multimodal_len(self) -> int:
        """Rows of all requests' prompt tables together; one request may use an equal share."""
        return self.max_batch_size * self.max_frames * TOKENS_PER_FRAME

    def explain(self) -> list[str]:
        """How the engine's numbers come about, a line each."""
        frames = f"{self.max_frames} frames x 23" if self.max_frames < 1000 else f"{frame_tokens(self.max_frames)} for frames"
        return [
            f"max_input_len {self.max_input_len} = {frames} + {self.max_text_tokens} of text",
            f"max_seq_len {self.max_seq_len} = {self.max_input_len} + {self.max_output_tokens} of answer",
            f"max_num_tokens {self.max_num_tokens} = max_input_len: a whole prompt in one step (longer ones go in chunks)",
            f"max_multimodal_len {self.max_multimodal_len} = batch {self.max_batch_size} x {self.max_frames} frames x "
            f"{TOKENS_PER_FRAME} rows; one request may bring {self.max_frames * TOKENS_PER_FRAME}",
        ]

    def limits(self, dtype: str, vocab_size: int, hidden_size: int) -> EngineLimits:
        """As the engine's ``config.json`` will say them."""
        return EngineLimits(
            dtype=dtype,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            max_batch_size=self.max_batch_size,
            max_input_len=self.max_input_len,
            max_seq_len=self.max_seq_len,
            max_num_tokens=self.max_num_tokens,
            max_prompt_embedding_table_size=self.max_multimodal_len,
        )


@dataclass(frozen=True)
class Plan:
    """Everything that decides what an engine becomes.

    Args:
        sizes: What it holds.
        quantization: Of its weights.
        dtype: Of everything else.
        tp: GPUs that share each layer.
        pp: Groups of GPUs that share the layers.
        calib_dataset: Text for `Quantization.needs_calibration`: a name on the hub, or a directory that ``datasets`` can load
            (split ``train``, column ``text``).
        calib_size: Samples of it.
    """

    sizes: Sizes
    quantization: Quantization = Quantization.INT8
    dtype: EngineDtype = EngineDtype.BFLOAT16
    tp: int = 1
    pp: int = 1
    calib_dataset: str = "cnn_dailymail"
    calib_size: int = 512

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1:
            raise PlanError(f"--tp and --pp must be at least 1, got {self.tp} and {self.pp}")

    @property
    def world_size(self) -> int:
        """Ranks, a GPU each."""
        return self.tp * self.pp


def convert_flags(plan: Plan) -> list[str]:
    """Flags of ``convert.py`` beside its paths."""
    flags = ["--dtype", plan.dtype, "--quantization", plan.quantization, "--tp", str(plan.tp), "--pp", str(plan.pp)]
    if plan.quantization.needs_calibration:
        flags += ["--calib-dataset", plan.calib_dataset, "--calib-size", str(plan.calib_size)]
    return flags


def example_convert_command(python: str, examples: Path, model: Path, out: Path, plan: Plan) -> list[str]:
    """The same conversion by TensorRT-LLM's example scripts (``examples`` of the release, or /app/examples of the image)."""
    common = ["--model_dir", str(model), "--output_dir", str(out), "--dtype", plan.dtype]
    common += ["--tp_size", str(plan.tp), "--pp_size", str(plan.pp)]
    if not plan.quantization.needs_calibration:
        weights = ["--use_weight_only", "--weight_only_precision", "int8"] if plan.quantization is Quantization.INT8 else []
        return [python, str(examples / "models/core/llama/convert_checkpoint.py"), *common, *weights]
    quantized = {
        Quantization.FP8: ["--qformat", "fp8", "--kv_cache_dtype", "fp8"],
        Quantization.INT4_AWQ: ["--qformat", "int4_awq", "--awq_block_size", "128"],
    }[plan.quantization]
    calibration = ["--calib_dataset", plan.calib_dataset, "--calib_size", str(plan.calib_size)]
    return [python, str(examples / "quantization/quantize.py"), *common, *quantized, *calibration]


def trtllm_build_command(checkpoint: Path, out: Path, plan: Plan) -> list[str]:
    """``trtllm-build`` of TensorRT-LLM 1.2.

    Paged KV cache with paged context attention is what reuse of cached prefixes and chunked prompts need; both are on in
    ``model_repository/tensorrt_llm/config.pbtxt``.
    """
    sizes = plan.sizes
    # The plugin does the products whose weights are not quantised. "auto" takes the dtype from the checkpoint, where
    # calibration may have left more than one.
    gemm = "auto" if plan.quantization.needs_calibration else plan.dtype.value
    command = ["trtllm-build", "--checkpoint_dir", str(checkpoint), "--output_dir", str(out)]
    command += ["--gemm_plugin", gemm, "--kv_cache_type", "paged", "--remove_input_padding", "enable"]
    command += ["--context_fmha", "enable", "--use_paged_context_fmha", "enable"]
    if plan.quantization is Quantization.FP8:
        command += ["--use_fp8_context_fmha", "enable"]  # paged context attention over an FP8 cache works in FP8 only
    command += ["--max_batch_size", str(sizes.max_batch_size), "--max_beam_width", "1"]
    command += ["--max_input_len", str(sizes.max_input_len), "--max_seq_len", str(sizes.max_seq_len)]
    command += ["--max_num_tokens", str(sizes.max_num_tokens), "--max_multimodal_len", str(sizes.max_multimodal_len)]
    return [*command, "--workers", str(plan.world_size)]


def engine_bytes(llm_config: Mapping[str, int], quantization: Quantization) -> int:
    """Weights of the whole engine: the layers' matrices as quantised, with their scales; embeddings and head in 16 bits.

    Args:
        llm_config: The checkpoint's ``llm_config``.
        quantization: Of the matrices.
    """
    hidden, mlp, layers = (llm_config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    head_dim = hidden // llm_config["num_attention_heads"]
    qkv = hidden + 2 * llm_config["num_key_value_heads"] * head_dim
    matrices = layers * hidden * (qkv + hidden + 3 * mlp)
    rows = layers * (qkv + 2 * hidden + 2 * mlp)
    unquantised = 2 * (2 * llm_config["vocab_size"] * hidden + (2 * layers + 1) * hidden)
    return (
        unquantised
        + {
            Quantization.NONE: 2 * matrices,
            Quantization.INT8: matrices + 2 * rows,  # a scale for each output channel
            Quantization.FP8: matrices,  # a scale for each matrix
            Quantization.INT4_AWQ: matrices // 2 + 2 * (matrices // 128),  # a scale for each 128 inputs of a channel
        }[quantization]
    )
