"""InternLM2 as Llama: the same network with other tensor names, and query, key and value matrices stored together.

The rewriting is exact; rows are only moved. TensorRT-LLM, too, runs InternLM2 as its Llama network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from internvideo_server.checkpoint import Checkpoint, CheckpointError

from .shards import ShardWriter

MAX_SHARD_BYTES = 1 << 30  # one tensor more or less
MAX_HELD_BYTES = 4 << 30  # of shards that are being written

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


def llama_config(source: Checkpoint, dtype_name: str) -> dict[str, Any]:
    """``config.json`` of LlamaForCausalLM.

    ``rope_scaling`` is null: InternLM2's dynamic NTK changes nothing up to 32768 positions (`MAX_POSITIONS` bounds the
    engine), and TensorRT-LLM cannot read a dynamic scaling that gives a factor only.

    Raises:
        CheckpointError: The language model is another than InternLM2 as this module knows it.
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


def write_llama_weights(source: Checkpoint, out: Path, dtype_name: str) -> None:
    """Write the safetensors shards and their index into ``out``.

    Tensors are read one by one, and a shard is begun whenever `MAX_SHARD_BYTES` have come together.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape than config.json says.
    """
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total_size = 0

    def flush() -> None:
        shards.append(list(pending))
        writer.write(out / f"{len(shards)}.part", dict(pending))
        pending.clear()

    with ShardWriter(MAX_HELD_BYTES) as writer, _progress() as progress:
        expected_bytes = sum(file.stat().st_size for file in _llm_files(source))
        task = progress.add_task("language model", total=expected_bytes)
        for name, stored in source.tensors(_PREFIX):
            for llama_name, tensor in _llama_tensors(name, stored, source.llm_config):
                pending[llama_name] = tensor.to(getattr(torch, dtype_name)).contiguous()
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
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _llm_files(source: Checkpoint) -> set[Path]:
    return {file for name, file in source.tensor_files.items() if name.startswith(_PREFIX)}


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)


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
        raise CheckpointError(f"{name} is not a tensor of InternLM2 as this export knows it")


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
