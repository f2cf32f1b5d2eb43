"""Make the engine directory of the embedded engine from an InternVideo2.5 checkpoint.

The language model is InternLM2, which is Llama with other tensor names and the query, key and value matrices of each KV head
stored together. So its weights are rewritten, exactly, as a standard ``LlamaForCausalLM`` directory (TensorRT-LLM, too,
runs InternLM2 as its Llama network and converts from this directory). Written are::

    ENGINE/llama/          config.json, generation_config.json, safetensors shards and their index
    ENGINE/tokenizer.json
    ENGINE/config.json     the limits, in trtllm-build's form (`internvideo_server.limits`)
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import save_file

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.limits import EngineLimits, LimitsError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found as a script, too
from build_scripts.export_tokenizer import TokenizerExportError, export_tokenizer

TOKENS_PER_FRAME = 16  # HiCo: 4 frames -> 64 tokens
FORMAT = 1  # of the llama/ directory; counted up when the export changes, so that cached ones are made again
MAX_SHARD_BYTES = 1 << 30  # what is held in memory at most, one tensor more or less

_PREFIX = "language_model."
_TOP_NAMES = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


class Dtype(StrEnum):
    """Of the weights written; ``auto`` keeps the checkpoint's."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def export_llm(
    checkpoint: Path,
    out: Path,
    *,
    max_batch_size: int = 8,
    max_frames: int = 128,
    max_seq_len: int = 8192,
    dtype: Dtype = Dtype.AUTO,
) -> EngineLimits:
    """Write the engine directory. Weights that are there already, made from the same content, stay.

    Args:
        checkpoint: Directory of the checkpoint.
        out: The engine directory; made if absent. Two exports into it wait for each other.
        max_batch_size: Requests in flight at once.
        max_frames: Frames of one request; `TOKENS_PER_FRAME` rows of its prompt table each.
        max_seq_len: Tokens of prompt and answer together.
        dtype: Of the weights, and so of the engine and the prompt table.

    Returns:
        The limits as written to ``config.json``.

    Raises:
        CheckpointError: The checkpoint is broken, or its language model is not InternLM2 as this export knows it.
        TokenizerExportError: Its tokenizer files cannot be exported exactly.
        LimitsError: ``max_seq_len`` is beyond what the exported positions are exact for.
    """
    source = Checkpoint.open(checkpoint)
    dtype_name = source.dtype if dtype is Dtype.AUTO else dtype.value
    limits = EngineLimits(
        dtype=dtype_name,
        vocab_size=source.llm_config["vocab_size"],
        hidden_size=source.llm_config["hidden_size"],
        max_batch_size=max_batch_size,
        max_input_len=max_seq_len - 1,
        max_seq_len=max_seq_len,
        max_num_tokens=max_seq_len,
        max_prompt_embedding_table_size=max_batch_size * max_frames * TOKENS_PER_FRAME,
    )
    identity = {"format": FORMAT, "fingerprint": source.fingerprint(), "dtype": dtype_name}
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out / ".lock"):
        if _read_identity(out / "llama") != identity:
            (out / "config.json").unlink(missing_ok=True)
            _write_llama(source, out / "llama", dtype_name, identity)
        export_tokenizer(checkpoint, out / "tokenizer.json")
        # Last, and gone while the weights change: a directory that has it is a whole one.
        part = out / ".config.json.part"
        _write_json(part, limits.to_document())
        part.replace(out / "config.json")
    return limits


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_identity(llama: Path) -> dict[str, Any] | None:
    try:
        identity: dict[str, Any] = json.loads((llama / "source.json").read_text())
        return identity
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_llama(source: Checkpoint, llama: Path, dtype_name: str, identity: dict[str, Any]) -> None:
    """Write beside, then rename: a directory named llama/ is always a whole one."""
    config = _llama_config(source, dtype_name)
    part = llama.with_name(".llama.part")  # left by an export that was killed, if it exists
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _write_weights(source, part, getattr(torch, dtype_name))
        _write_json(part / "config.json", config)
        generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": list(source.end_token_ids)}
        _write_json(part / "generation_config.json", {**generation, "pad_token_id": config["pad_token_id"]})
        _write_json(part / "source.json", identity)
        shutil.rmtree(llama, ignore_errors=True)
        part.rename(llama)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _llama_config(source: Checkpoint, dtype_name: str) -> dict[str, Any]:
    """``config.json`` of LlamaForCausalLM.

    ``rope_scaling`` is null: InternLM2's dynamic NTK changes nothing up to 32768 positions (`MAX_POSITIONS` bounds the
    engine), and TensorRT-LLM cannot read a dynamic scaling that gives a factor only.
    """
    llm = source.llm_config
    config_file = source.path / "config.json"
    required = {"model_type": "internlm2", "bias": False, "tie_word_embeddings": False, "hidden_act": "silu"}
    for key, value in required.items():
        if llm.get(key) != value:
            raise CheckpointError(f"{config_file}: llm_config.{key} must be {value!r}, not {llm.get(key)!r}")
    copied = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "tie_word_embeddings"),
    )
    if missing := [key for key in copied if key not in llm]:
        raise CheckpointError(f"{config_file}: llm_config lacks {', '.join(missing)}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: llm[key] for key in copied},
        "head_dim": llm["hidden_size"] // llm["num_attention_heads"],
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "torch_dtype": dtype_name,
        "use_cache": True,
    }


def _write_weights(source: Checkpoint, out: Path, dtype: torch.dtype) -> None:
    """Read tensor by tensor and write a shard whenever `MAX_SHARD_BYTES` have come together."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total_size = 0

    def flush() -> None:
        shards.append(list(pending))
        save_file(pending, out / f"{len(shards)}.part", metadata={"format": "pt"})
        pending.clear()

    with _progress() as progress:
        expected_bytes = sum(file.stat().st_size for file in _llm_files(source))
        task = progress.add_task("language model", total=expected_bytes)
        for name, stored in source.tensors(_PREFIX):
            for llama_name, tensor in _llama_tensors(name, stored, source.llm_config):
                pending[llama_name] = tensor.to(dtype).contiguous()
                total_size += pending[llama_name].nbytes
            progress.advance(task, stored.nbytes)
            if sum(tensor.nbytes for tensor in pending.values()) >= MAX_SHARD_BYTES:
                flush()
        if pending:
            flush()
        progress.update(task, completed=expected_bytes)
    _check_complete({name for shard in shards for name in shard}, source)

    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (out / f"{number}.part").rename(out / file)
        (out / file).chmod(0o644)  # safetensors makes it private; the server may run as another user
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


def _llm_files(source: Checkpoint) -> set[Path]:
    return {file for name, file in source.tensor_files.items() if name.startswith(_PREFIX)}


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _llama_tensors(name: str, tensor: torch.Tensor, llm: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The Llama tensors that one InternLM2 tensor becomes: one, or three for ``wqkv``."""
    short = name.removeprefix(_PREFIX)
    if short in _TOP_NAMES:
        yield _TOP_NAMES[short], tensor
        return
    match = _LAYER.fullmatch(short)
    if match and match[2] in _LAYER_NAMES:
        yield f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}", tensor
    elif match and match[2] == "attention.wqkv.weight":
        for letter, part in zip("qkv", _split_wqkv(name, tensor, llm), strict=True):
            yield f"model.layers.{match[1]}.self_attn.{letter}_proj.weight", part
    else:
        raise CheckpointError(f"{name} is no tensor of InternLM2 as this export knows it")


def _split_wqkv(name: str, wqkv: torch.Tensor, llm: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows are grouped by KV head: the queries that share it, then its key, then its value.

    Query head order (group by group) is that of Llama's grouped attention, and both rotate halves, so rows are only moved.
    """
    heads, kv_heads, hidden = llm["num_attention_heads"], llm["num_key_value_heads"], llm["hidden_size"]
    head_dim, queries = hidden // heads, heads // kv_heads
    if wqkv.shape != (expected := (kv_heads * (queries + 2) * head_dim, hidden)):
        raise CheckpointError(f"{name} is {tuple(wqkv.shape)}, config.json says {expected}")
    groups = wqkv.view(kv_heads, queries + 2, head_dim, hidden)  # [kv heads, q..q k v, head dim, hidden]
    q, k, v = groups[:, :queries], groups[:, queries], groups[:, queries + 1]
    return q.reshape(-1, hidden), k.reshape(-1, hidden), v.reshape(-1, hidden)


def _check_complete(written: set[str], source: Checkpoint) -> None:
    layer = [*_LAYER_NAMES.values(), *(f"self_attn.{letter}_proj.weight" for letter in "qkv")]
    layers = range(source.llm_config["num_hidden_layers"])
    expected = {*_TOP_NAMES.values(), *(f"model.layers.{i}.{name}" for i in layers for name in layer)}
    if missing := sorted(expected - written):
        raise CheckpointError(f"{source.path} has no weights for {missing[0]} ({len(missing)} missing)")
    if surplus := sorted(written - expected):
        raise CheckpointError(f"{source.path} has more layers than llm_config.num_hidden_layers: {surplus[0]}")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="Engine directory to make or bring up to date.")],
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 8,
    max_frames: Annotated[int, typer.Option(min=4, help="Frames of one request at most.")] = 128,
    max_seq_len: Annotated[int, typer.Option(min=2, help="Tokens of prompt and answer together.")] = 8192,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto keeps the checkpoint's.")] = Dtype.AUTO,
) -> None:
    """Make the engine directory of the embedded engine from an InternVideo2.5 checkpoint."""
    try:
        export_llm(
            checkpoint,
            out,
            max_batch_size=max_batch_size,
            max_frames=max_frames,
            max_seq_len=max_seq_len,
            dtype=dtype,
        )
    except (CheckpointError, LimitsError, TokenizerExportError, OSError, SafetensorError) as error:
        # The last two: disk full, no permission.
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console(stderr=True).print(f"engine: {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
