"""Checks of the checkpoint and the engine, alone and against each other."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.engine_directory import GRAMMAR_FILE, pretrained_config, world_size
from internvideo_server.limits import TOKENS_PER_FRAME, EngineLimits, LimitsError

from ._report import Check, failed, ok, skipped, warning
from ._shapes import check_shapes

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "added_tokens.json")
_FETCH = "download the checkpoint again (all of its files, config.json's version included)"
_BUILD = "make the engine anew: build_scripts/build.py (TensorRT-LLM) or build_scripts/export_llm.py (embedded)"


def check_checkpoint(path: Path) -> tuple[list[Check], Checkpoint | None]:
    """Files, headers, shapes and tokenizer files of a checkpoint; the opened checkpoint where it is sound."""
    name = "checkpoint"
    try:
        checkpoint = Checkpoint.open(path)
        parameters = check_shapes(checkpoint)
    except CheckpointError as error:
        return [failed(name, str(error), _FETCH)], None
    files = len(set(checkpoint.tensor_files.values()))
    vocabulary = checkpoint.llm_config["vocab_size"]
    message = f"{parameters:,} parameters in {files} files, {checkpoint.dtype}, vocabulary {vocabulary}"
    checks = [ok(name, message)]
    for file in _TOKENIZER_FILES:
        if problem := _file_problem(path / file):
            checks.append(failed("tokenizer files", f"{path / file} {problem}", _FETCH))
    return checks, checkpoint


def _file_problem(file: Path) -> str:
    if not file.is_file():
        return "is missing"
    if file.suffix == ".json":
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is not valid JSON: {error}"
    return "" if file.stat().st_size else "is empty"


def check_engine(engine: Path, *, max_frames: int | None) -> tuple[list[Check], EngineLimits | None]:
    """An engine directory by itself; its limits where they can be read."""
    try:
        limits = EngineLimits.from_engine_dir(engine)
    except LimitsError as error:
        return [failed("engine", str(error), _BUILD)], None
    checks: list[Check] = []
    built = any(engine.glob("rank*.engine"))
    try:
        ranks = world_size(engine)
    except LimitsError as error:
        return [failed("engine", str(error), _BUILD)], limits
    if built:
        checks.append(ok("engine", f"TensorRT-LLM, {ranks} rank{'s' if ranks > 1 else ''}, {_lengths(limits)}"))
        checks += [_check_version(engine), _check_plugins(engine), _check_grammar(engine)]
    elif (engine / "llama" / "config.json").is_file():
        checks.append(ok("engine", f"embedded, {_lengths(limits)}"))
    else:
        return [failed("engine", f"{engine} holds neither rank0.engine nor llama/", _BUILD)], limits
    if not (engine / "tokenizer.json").is_file():
        fix = f"build_scripts/export_tokenizer.py CHECKPOINT --out {engine}/tokenizer.json"
        checks.append(failed("tokenizer", f"{engine}/tokenizer.json is missing", fix))
    max_frames = limits.max_frames if max_frames is None else max_frames
    rows = max_frames * TOKENS_PER_FRAME
    if max_frames > limits.max_frames:
        checks.append(
            failed(
                "prompt table",
                f"{max_frames} frames need {rows} rows, the engine takes {limits.max_rows} per request",
                f"--max-frames {limits.max_frames}, or build with a larger --max-frames",
            )
        )
    else:
        checks.append(ok("prompt table", f"{limits.max_rows} rows per request, {rows} for {max_frames} frames"))
    return checks, limits


def _lengths(limits: EngineLimits) -> str:
    return (
        f"{limits.dtype}, batch {limits.max_batch_size}, {limits.max_seq_len} tokens (prompts of up to {limits.max_input_len} "
        f"in one step of {limits.max_num_tokens})"
    )


def _check_version(engine: Path) -> Check:
    """An engine runs on the release of TensorRT-LLM that built it, and on no other."""
    built = json.loads((engine / "config.json").read_text()).get("version")
    try:
        installed = metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        return skipped("engine version", f"built with TensorRT-LLM {built}; none is installed for this Python to compare with")
    if built != installed:
        fix = "build the engine inside the container that serves it (build_scripts/build.py)"
        return failed("engine version", f"built with TensorRT-LLM {built}, installed is {installed}", fix)
    return ok("engine version", f"TensorRT-LLM {installed} built it and is installed")


def _check_plugins(engine: Path) -> Check:
    """What KV-cache reuse and chunked prompts need, which the repository switches on."""
    build = json.loads((engine / "config.json").read_text()).get("build_config", {})
    plugins = build.get("plugin_config", {})
    wanted = {"use_paged_context_fmha": True, "remove_input_padding": True}
    wrong = [name for name, value in wanted.items() if plugins.get(name) is not value]
    if str(build.get("kv_cache_type", "paged")).rpartition(".")[2].lower() != "paged":
        wrong.append("kv_cache_type")
    if wrong:
        return failed("engine plugins", f"built without {', '.join(wrong)}, which KV-cache reuse needs", _BUILD)
    return ok("engine plugins", "paged KV cache with paged context attention")


def _check_grammar(engine: Path) -> Check:
    if (engine / GRAMMAR_FILE).is_file():
        return ok("guided decoding", f"{GRAMMAR_FILE} is there")
    return warning(
        "guided decoding",
        f"{engine} has no {GRAMMAR_FILE}: it is served without guided decoding",
        f"build_scripts/export_grammar.py CHECKPOINT --tokenizer {engine}/tokenizer.json --out {engine}/{GRAMMAR_FILE}",
    )


def check_agreement(checkpoint: Checkpoint, engine: Path, limits: EngineLimits) -> Check:
    """Whether the engine was made of this checkpoint, as far as sizes can tell."""
    llm, built = checkpoint.llm_config, pretrained_config(engine)
    pairs = {
        "vocab_size": (llm.get("vocab_size"), limits.vocab_size),
        "hidden_size": (llm.get("hidden_size"), limits.hidden_size),
        "num_hidden_layers": (llm.get("num_hidden_layers"), built.get("num_hidden_layers", llm.get("num_hidden_layers"))),
    }
    differing = [f"{name} {ours} / {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if differing:
        return failed("agreement", f"checkpoint / engine: {', '.join(differing)}", _BUILD)
    dtype = f"the vision tower runs in the engine's {limits.dtype}"
    stored = "" if checkpoint.dtype == limits.dtype else f" (stored as {checkpoint.dtype})"
    return ok("agreement", f"vocabulary {limits.vocab_size} and hidden size {limits.hidden_size} are equal; {dtype}{stored}")
