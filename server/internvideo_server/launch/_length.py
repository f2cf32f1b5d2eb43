"""How long the requests of a run may be, settled before anything is started; what cannot work is refused with what can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from internvideo_server.checkpoint import CheckpointError, read_config
from internvideo_server.context import CPU_FRAMES, GPU_FRAMES, Context
from internvideo_server.engine_directory import EngineKind
from internvideo_server.export.language_model import MAX_BATCH_SIZE
from internvideo_server.gpus import Gpu
from internvideo_server.limits import TOKENS_PER_FRAME, EngineLimits, LimitsError
from internvideo_server.memory import GIB, MIB, Deployment, MemoryNeed, budget, deployment_of, embedding_cache_bytes
from internvideo_server.settings import RepositorySettings, VllmSettings, flag

from ._device import Device
from ._errors import LaunchError

Chosen = TypeVar("Chosen", bound=RepositorySettings)


def settle_length(
    options: Chosen, checkpoint: Path, device: Device, vit_device: Device, gpus: Sequence[Gpu], host: int | None = None
) -> tuple[Chosen, str]:
    """The settings with ``max_frames``, ``max_model_len`` and ``embedding_cache_mb`` as numbers, and the line that tells of them.

    Args:
        options: As given.
        checkpoint: Its config.json gives the model's shape.
        device: Of the engine.
        vit_device: Of the vision tower.
        gpus: Those of the host, as nvidia-smi tells them; none: not known, and nothing is refused for want of memory.
        host: Bytes of the host's memory that can be had; None: not known.

    Raises:
        LaunchError: They cannot be together, are not the engine's, or do not fit the GPU; the message has the largest that can.
    """
    try:
        deployment, limits, kind = _deployment(options, checkpoint, device)
        deployment = replace(deployment, tower=vit_device == device)
        room = _room(options, device, gpus)
        context = _context(options, limits, kind, deployment, room)
    except (LimitsError, CheckpointError) as error:
        raise LaunchError(str(error)) from error
    if options.num_frames > context.max_frames:
        raise LaunchError(f"--num-frames {options.num_frames} is more than --max-frames {context.max_frames}")
    need, cache = deployment.need(context), options.embedding_cache_mb
    if cache is None:
        free = host if vit_device.index is None else room if vit_device == device else _room(options, vit_device, gpus)
        taken = need.least if vit_device == device else replace(deployment, tower=True).need(context).vision
        cache = embedding_cache_bytes(None if free is None else free - taken) // MIB
    settled = {"max_frames": context.max_frames, "max_model_len": str(context.max_model_len), "embedding_cache_mb": cache}
    return options.model_copy(update=settled), _line(context, need, cache)


def _deployment(
    options: RepositorySettings, checkpoint: Path, device: Device
) -> tuple[Deployment, EngineLimits | None, EngineKind]:
    config = read_config(checkpoint)
    region = None if options.cuda_region_mb is None else options.cuda_region_mb << 20
    engine = options.engine
    if engine is not None:
        limits = EngineLimits.from_engine_dir(engine)
        kind = EngineKind.choose(options.llm_engine, engine, gpu=device.index is not None)
        if kind is EngineKind.TENSORRT_LLM and options.gpu_memory is not None:
            raise LimitsError("--gpu-memory is for the other engines: --kv-cache-fraction is TensorRT-LLM's")
        found = deployment_of(config, engine, limits, options.cuda_region_count, region_bytes=region)
    else:
        limits = None
        kind = EngineKind.choose(options.llm_engine, checkpoint, gpu=device.index is not None)
        dtype = device.default_dtype if options.dtype == "auto" else options.dtype
        found = Deployment(config, dtype, MAX_BATCH_SIZE, options.cuda_region_count, region_bytes=region)
    if kind is not EngineKind.VLLM:
        _check_nothing_for_vllm(options, kind)
        return found, limits, kind
    return found.on_vllm(options.llm_quantization, options.kv_cache_dtype, options.tensor_parallel_size), limits, kind


def _check_nothing_for_vllm(options: RepositorySettings, kind: EngineKind) -> None:
    for name, its in VllmSettings.model_fields.items():
        if name != "gpu_memory" and getattr(options, name) != its.default:
            raise LimitsError(
                f"{flag(name)} is for vLLM, and the language model runs on {kind}: leave it out, or see --llm-engine"
            )


def _room(options: RepositorySettings, device: Device, gpus: Sequence[Gpu]) -> int | None:
    """Bytes of the GPU for all; None: a CPU, or not known."""
    found = next((gpu for gpu in gpus if gpu.index == device.index), None)
    if options.gpu_memory is not None and device.index is None:
        raise LimitsError("--gpu-memory is for a GPU, and the engine runs on the CPU: leave it out")
    if found is None:
        return None if options.gpu_memory is None else int(options.gpu_memory * GIB)
    return budget(found.free, options.gpu_memory)


def _context(
    options: RepositorySettings, limits: EngineLimits | None, kind: EngineKind, deployment: Deployment, room: int | None
) -> Context:
    carried, length = CPU_FRAMES if room is None else GPU_FRAMES, options.wanted_length
    context = Context.of(options.max_frames, length, carried) if limits is None else _engines_own(options, limits, carried)
    # What TensorRT-LLM takes beyond its weights, the engine that it built decides.
    if room is None or kind is EngineKind.TENSORRT_LLM or deployment.need(context).least <= room:
        return context
    if limits is not None:
        what = f"the engine {options.engine}, which takes {context.max_model_len} tokens,"
        raise LimitsError(_too_much(what, deployment, context, room, "make one for fewer"))
    fitting = deployment.most_frames(room, context.max_frames, length)
    if options.max_frames is None and fitting >= options.num_frames:
        return Context.of(fitting, length)
    what = f"--max-frames {context.max_frames} with {context.max_model_len} tokens"
    raise LimitsError(
        _too_much(what, deployment, context, room, f"at most --max-frames {fitting}" if fitting else "no length fits")
    )


def _too_much(what: str, deployment: Deployment, context: Context, room: int, remedy: str) -> str:
    need = deployment.need(context)
    return (
        f"{what} needs {need.least / GIB:.1f} GiB of the GPU for one request (for a full batch {need.explain()}), "
        f"{room / GIB:.1f} are to be had: {remedy}"
        + "; --llm-quantization fp8 halves the weights"
        * (deployment.vllm and not deployment.quantized)
    )


def _engines_own(options: RepositorySettings, limits: EngineLimits, carried: int) -> Context:
    """An engine directory has its limits."""
    if options.wanted_length not in (None, limits.max_seq_len):
        raise LimitsError(
            f"--max-model-len {options.max_model_len}, but the engine {options.engine} was made for {limits.max_seq_len}: leave "
            "it out, or make the engine anew"
        )
    frames = min(carried, limits.max_frames) if options.max_frames is None else options.max_frames
    if frames > limits.max_frames:
        raise LimitsError(
            f"--max-frames {frames} needs {frames * TOKENS_PER_FRAME} rows of the prompt table ({TOKENS_PER_FRAME} a frame), "
            f"but the engine takes {limits.max_rows} per request: at most --max-frames {limits.max_frames}"
        )
    return Context(frames, limits.max_seq_len)


def _line(context: Context, need: MemoryNeed, cache_mb: int) -> str:
    sizes = {"weights": need.weights + need.vision - need.tower_allowance, "tables": need.prompt_tables}
    parts = [f"{_gib(size)} of {name}" for name, size in sizes.items()]
    return (
        f"requests of up to {context.max_frames} frames and {context.max_model_len} tokens: {', '.join(parts)}, "
        f"{_gib(need.kv_per_request)} of keys and values for each of the longest; "
        f"{_gib(cache_mb * MIB)} for embeddings that come again"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2g} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"
