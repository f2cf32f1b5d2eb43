"""Make a checkpoint of random weights in the file layout of InternVideo2_5_Chat_8B.

Tensor names, shapes, configuration, sharding and tokenizer files are those of the real one; only the numbers mean
nothing. ``tiny`` is for tests; ``full`` shows loading and speed at the real size.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from build_scripts.checkpoint_sizes import DIMENSIONS, Size, TensorSpec, model_config, tensor_specs
from build_scripts.random_tokenizer import write_tokenizer
from internvideo_server.export.shards import ShardWriter

MAX_SHARD_BYTES = 5_000_000_000  # save_pretrained's limit when the real checkpoint was written


class Dtype(StrEnum):
    """Of the weights written."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def make_checkpoint(
    out: Path,
    *,
    size: Size = Size.TINY,
    seed: int = 0,
    dtype: Dtype | None = None,
    shards: int | None = None,
    tokenizer_model: Path | None = None,
) -> None:
    """Write the checkpoint. Equal arguments give equal files; a tensor depends on the seed and its name alone.

    Args:
        out: A directory that does not exist yet, or is empty.
        size: ``tiny`` or ``full``.
        seed: Of weights and tokenizer.
        dtype: None: float32 for tiny, bfloat16 for full.
        shards: How many weight files; None: as few as fit 5 GB each. While one is drawn, at most 5 GB
            of others are being written: more of them, less memory and time.
        tokenizer_model: InternLM2's ``tokenizer.model``, for full. Without it a small one is trained and its vocabulary
            filled up with pieces that no text contains: ids and limits are the real ones, prompts are longer.

    Raises:
        ValueError: ``out`` is not empty, the tokenizer does not fit, or there cannot be so many shards.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: remove it or choose another --out")
    dimensions = DIMENSIONS[size]
    dtype = dtype or (Dtype.FLOAT32 if size == Size.TINY else Dtype.BFLOAT16)
    parts = _split(list(tensor_specs(dimensions)), dtype, shards)

    part_dir = out.parent / f".{out.name}.{os.getpid()}.part"  # nobody finds half a checkpoint under the final name
    part_dir.mkdir(parents=True)
    try:
        end_ids = write_tokenizer(part_dir, dimensions.vocab_size, seed, tokenizer_model)
        _write_json(part_dir / "config.json", model_config(dimensions, str(dtype)))
        generation = {"_from_model_config": True, "eos_token_id": end_ids, "transformers_version": "4.37.2"}
        _write_json(part_dir / "generation_config.json", generation)
        _write_weights(part_dir, parts, dtype, seed)
        part_dir.replace(out)  # fails if another process was faster
    except BaseException:
        shutil.rmtree(part_dir, ignore_errors=True)
        raise


def _split(specs: list[TensorSpec], dtype: Dtype, shards: int | None) -> list[list[TensorSpec]]:
    """The tensors of each file: in order, and either at most `MAX_SHARD_BYTES` or about equally many bytes each."""
    sizes = [math.prod(spec.shape) * getattr(torch, dtype).itemsize for spec in specs]
    parts: list[list[TensorSpec]] = [[]]
    if shards is None:
        held = 0
        for spec, size in zip(specs, sizes, strict=True):
            if held and held + size > MAX_SHARD_BYTES:
                parts.append([])
                held = 0
            parts[-1].append(spec)
            held += size
        return parts
    parts = [[] for _ in range(shards)]
    start, total = 0, sum(sizes)
    for spec, size in zip(specs, sizes, strict=True):
        parts[(start + size // 2) * shards // total].append(spec)
        start += size
    if not all(parts):
        raise ValueError(f"the tensors cannot be split into {shards} files: one is larger than a file's share")
    return parts


def _write_weights(out: Path, parts: list[list[TensorSpec]], dtype: Dtype, seed: int) -> None:
    weight_map: dict[str, str] = {}
    total_size = 0
    # Each tensor has a generator of its own, and drawing holds no lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool, ShardWriter(MAX_SHARD_BYTES) as writer:
        for number, specs in enumerate(parts, start=1):
            file = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            drawn = pool.map(lambda spec: (spec.name, _random_tensor(spec, dtype, seed)), specs)
            console = Console(stderr=True)
            shown = track(
                drawn,
                f"weights {number}/{len(parts)}",
                len(specs),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
            tensors = dict(shown)
            writer.write(out / file, tensors)
            weight_map |= dict.fromkeys(tensors, file)
            total_size += sum(tensor.nbytes for tensor in tensors.values())
            del tensors  # before the next file's are made
    if len(parts) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / "model.safetensors.index.json", index)


def _random_tensor(spec: TensorSpec, dtype: Dtype, seed: int) -> torch.Tensor:
    """Drawn in float32 whatever the dtype, so a bfloat16 checkpoint is the float32 one, rounded."""
    key = hashlib.sha256(f"{seed}:{spec.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    values = torch.empty(spec.shape).normal_(spec.mean, spec.std, generator=generator)
    return values.to(getattr(torch, dtype))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    size: Annotated[Size, typer.Option(help="tiny, or full: the real dimensions, 16.15 GB.")] = Size.TINY,
    seed: Annotated[int, typer.Option(help="Of weights and tokenizer.")] = 0,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float32 for tiny, bfloat16 for full.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Weight files; default: 5 GB each.")] = None,
    tokenizer_model: Annotated[Path | None, typer.Option(exists=True, help="Copy this tokenizer.model (full).")] = None,
) -> None:
    """Make a checkpoint of random weights in the file layout of InternVideo2_5_Chat_8B."""
    try:
        make_checkpoint(out, size=size, seed=seed, dtype=dtype, shards=shards, tokenizer_model=tokenizer_model)
    except (ValueError, OSError) as error:  # OSError: disk full, no permission
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console(stderr=True).print(f"checkpoint: {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors are drawn on every core at a time already
    typer.run(main)
