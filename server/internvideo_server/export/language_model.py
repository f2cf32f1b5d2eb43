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
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from internvideo_server.checkpoint import Checkpoint
from internvideo_server.context import Context
from internvideo_server.limits import EngineLimits

MAX_BATCH_SIZE = 8  # requests in flight at once, where nobody says
FORMAT = 1  # counted up with every change of what is written, so that cached exports are made again


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
    max_batch_size: int = MAX_BATCH_SIZE,
    max_frames: int | None = None,
    max_seq_len: int | None = None,
    dtype: Dtype = Dtype.AUTO,
) -> EngineLimits:
    """Write the engine directory. Weights that are there already, made from the same content, stay.

    Args:
        checkpoint: Directory of the checkpoint.
        out: The engine directory; made if absent. Two exports into it wait for each other.
        max_batch_size: Requests in flight at once.
        max_frames: Frames of one request; None: see :class:`Context`.
        max_seq_len: Tokens of prompt and answer together; None: what the frames need, and text and answer.
        dtype: Of the weights, and so of the engine and the prompt table.

    Returns:
        The limits as written to ``config.json``.

    Raises:
        CheckpointError: The checkpoint is broken, or its language model is not InternLM2 as this export knows it.
        TokenizerExportError: Its tokenizer files cannot be exported exactly.
        LimitsError: Frames and length cannot be together.
    """
    source = Checkpoint.open(checkpoint)
    dtype_name = source.dtype if dtype == Dtype.AUTO else str(dtype)
    context, llm = Context.of(max_frames, max_seq_len), source.llm_config
    limits = EngineLimits.of(
        dtype_name, llm["vocab_size"], llm["hidden_size"], max_batch_size, context.max_frames, context.max_model_len
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
        write_limits(limits, out)
    return limits


def write_limits(limits: EngineLimits, engine: Path) -> None:
    """Write ``config.json`` of an engine directory, whole or not at all."""
    part = engine / ".config.json.part"
    _write_json(part, limits.to_document())
    part.replace(engine / "config.json")


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
    from ._internlm2_to_llama import llama_config, write_llama_weights
    from .tokenizer import export_tokenizer

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
