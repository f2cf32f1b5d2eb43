"""Make the engine directory of the embedded engine from an InternVideo2.5 checkpoint.

Written are::

    ENGINE/llama/          the language model as LlamaForCausalLM: config.json, generation_config.json, safetensors shards
    ENGINE/tokenizer.json
    ENGINE/config.json     the limits, in trtllm-build's form (`internvideo_server.limits`)

``trtllm-build``'s own checkpoint conversion for Llama reads ENGINE/llama, too.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from safetensors import SafetensorError

from internvideo_server.checkpoint import Checkpoint
from internvideo_server.limits import TOKENS_PER_FRAME, EngineLimits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # build_scripts is found when this runs as a script, too

FORMAT = 1  # counted up when the export changes, so that cached directories are made again


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
    dtype_name = source.dtype if dtype == Dtype.AUTO else str(dtype)
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
        if _read_identity(out) != identity:
            # Gone while the rest changes, so that a directory that has them is a whole one.
            (out / "config.json").unlink(missing_ok=True)
            (out / "source.json").unlink(missing_ok=True)
            _export(source, out, dtype_name)
            _write_json(out / "source.json", identity)
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


def _read_identity(out: Path) -> dict[str, Any] | None:
    try:
        identity: dict[str, Any] = json.loads((out / "source.json").read_text())
        return identity
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _export(source: Checkpoint, out: Path, dtype_name: str) -> None:
    """Everything but the limits. The weights are written beside and renamed when they are whole."""
    # Here, for a server that starts with a current engine directory need not wait for torch and transformers.
    from build_scripts._internlm2_to_llama import llama_config, write_llama_weights
    from build_scripts.export_tokenizer import export_tokenizer

    config = llama_config(source, dtype_name)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": list(source.end_token_ids)}
    generation["pad_token_id"] = config["pad_token_id"]
    llama, part = out / "llama", out / ".llama.part"
    shutil.rmtree(part, ignore_errors=True)  # left by an export that was killed
    part.mkdir()
    try:
        write_llama_weights(source, part, dtype_name)
        _write_json(part / "config.json", config)
        _write_json(part / "generation_config.json", generation)
        shutil.rmtree(llama, ignore_errors=True)
        part.rename(llama)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    export_tokenizer(source.path, out / "tokenizer.json")


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
    except (ValueError, OSError, SafetensorError) as error:  # the last two: disk full, no permission
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console(stderr=True).print(f"engine: {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
