"""Render the model repository for one run: parse each config.pbtxt, set this run's values, write it back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._engine import GRAMMAR_FILE, REGION_COUNT, world_size
from ._errors import LaunchError
from ._options import Device

_TYPES = {"float32": "TYPE_FP32", "bfloat16": "TYPE_BF16", "float16": "TYPE_FP16"}


@dataclass(frozen=True)
class RunSettings:
    """What a run sets in the repository; directories are absolute, ``dtype`` and devices resolved.

    ``vit_device`` None: the engine's. ``kv_cache_fraction`` None: as the repository says.
    """

    checkpoint: Path
    engine: Path
    device: Device
    dtype: str
    num_frames: int
    max_frames: int
    allowed_local_media_path: tuple[Path, ...]
    decode_workers: int
    max_queue_size: int
    vit_device: Device | None = None
    vit_quantization: str = "none"
    kv_cache_fraction: float | None = None
    video_reader: str = "auto"
    frame_cache_mb: int = 1024
    embedding_cache_mb: int = 1024
    request_timeout_s: float = 300.0
    cuda_region_count: int = REGION_COUNT
    cuda_region_bytes: int = 0

    @property
    def tower(self) -> Device:
        """Where the vision tower runs."""
        return self.vit_device or self.device

    def parameters(self) -> dict[str, dict[str, str]]:
        """Model name -> parameters of its config.pbtxt."""
        return {
            "preprocessing": {
                "tokenizer_path": str(self.engine / "tokenizer.json"),
                "engine_dir": str(self.engine),
                "num_frames": str(self.num_frames),
                "max_frames": str(self.max_frames),
                "allowed_local_media_path": os.pathsep.join(str(path.resolve()) for path in self.allowed_local_media_path),
                "decode_workers": str(self.decode_workers),
                "video_reader": self.video_reader,
                "frame_cache_bytes": str(self.frame_cache_mb << 20),
                "request_timeout_s": str(self.request_timeout_s),
                "max_queue_size": str(self.max_queue_size),
            },
            "vit": {
                "checkpoint_dir": str(self.checkpoint),
                "engine_dir": str(self.engine),
                "dtype": self.dtype,
                "quantization": self.vit_quantization,
                "device": self.tower.name,
                "embedding_cache_bytes": str(self.embedding_cache_mb << 20),
                "cuda_region_count": str(self.cuda_region_count),
                "cuda_region_bytes": str(self.cuda_region_bytes),
            },
            "tensorrt_llm": self._engine_parameters(),
        }

    def _engine_parameters(self) -> dict[str, str]:
        grammar = self.engine / GRAMMAR_FILE  # without it guided decoding is off: the backend would not load
        first = self.device.index
        gpus = [] if first is None else range(first, first + world_size(self.engine))
        parameters = {
            "gpt_model_path": str(self.engine),
            "gpu_device_ids": ",".join(map(str, gpus)),
            "guided_decoding_backend": "xgrammar" if grammar.is_file() else "",
            "xgrammar_tokenizer_info_path": str(grammar) if grammar.is_file() else "",
        }
        if self.kv_cache_fraction is not None:
            parameters["kv_cache_free_gpu_mem_fraction"] = str(self.kv_cache_fraction)
        return parameters


def render_repository(source: Path, target: Path, settings: RunSettings) -> list[str]:
    """Write a copy of the repository ``source`` with the run's values into the new directory ``target``.

    The copy stands for itself: a plain ``tritonserver --model-repository`` can run it.

    Returns:
        The names of the models, sorted.

    Raises:
        LaunchError: A config.pbtxt does not parse, or a model that the run has values for is absent.
    """
    parameters = settings.parameters()
    names = sorted(path.parent.name for path in source.glob("*/config.pbtxt"))
    if missing := sorted(set(parameters) - set(names)):
        raise LaunchError(f"{source} is no complete model repository: {', '.join(missing)} missing")
    for name in names:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        (target / name / "1").mkdir(exist_ok=True)  # an ensemble's version directory is empty, which git does not keep
        config = read_config(source / name / "config.pbtxt")
        set_parameters(config, parameters.get(name, {}))
        _set_table_type(config, settings.dtype)
        if name == "vit":
            _set_instances(config, settings.tower)
        (target / name / "config.pbtxt").write_text(text_format.MessageToString(config))
    return names


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt into tritonclient's ``ModelConfig`` message.

    Raises:
        LaunchError: It does not parse; the message has line and column.
    """
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise LaunchError(f"{path}: {error}") from error


def set_parameters(config: Any, values: Mapping[str, str]) -> None:
    """Set ``parameters`` of a ModelConfig, the others stay."""
    for key, value in values.items():
        config.parameters[key].string_value = value


def _set_table_type(config: Any, dtype: str) -> None:
    """The prompt table has the run's dtype wherever it is declared."""
    for tensor in (*config.input, *config.output):
        if tensor.name == "prompt_embedding_table":
            tensor.data_type = model_config_pb2.DataType.Value(_TYPES[dtype])


def _set_instances(config: Any, device: Device) -> None:
    """Move the instance groups to the device, with their counts as they are."""
    counts = [max(group.count, 1) for group in config.instance_group] or [1]
    del config.instance_group[:]
    for count in counts:
        if device.index is None:
            config.instance_group.add(count=count, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
        else:
            config.instance_group.add(count=count, kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, gpus=[device.index])
