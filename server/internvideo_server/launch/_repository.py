"""Render the model repository for one run: parse each config.pbtxt, set this run's values, write it back."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from pydantic import BaseModel
from tritonclient.grpc import model_config_pb2

from internvideo_server.engine_directory import GRAMMAR_FILE, EngineKind, world_size
from internvideo_server.limits import LimitsError
from internvideo_server.settings import PreprocessingSettings, RepositorySettings, VitSettings, VllmSettings, to_parameters

from ._device import Device
from ._errors import LaunchError

_TYPES = {"float32": "TYPE_FP32", "bfloat16": "TYPE_BF16", "float16": "TYPE_FP16"}


@dataclass(frozen=True)
class RunPlan:
    """What a run's settings come to on this host: directories are absolute, dtype and devices resolved."""

    settings: RepositorySettings
    checkpoint: Path
    engine: Path
    dtype: str
    device: Device  # of the engine
    vit_device: Device
    files: Path | None = None  # of the adapter, whose uploads preprocessing opens
    handoff_id: str = field(default_factory=lambda: secrets.token_hex(16))  # nobody else can guess it

    @property
    def kind(self) -> EngineKind:
        """The engine at work.

        Raises:
            LaunchError: The directory was made for another one, or it is not installed.
        """
        try:
            return EngineKind.choose(self.settings.llm_engine, self.engine, gpu=self.device.index is not None)
        except LimitsError as error:
            raise LaunchError(str(error)) from error

    @property
    def vit(self) -> VitSettings:
        """The parameters of `vit`."""
        return VitSettings(
            **_shared(self.settings, VitSettings),
            checkpoint_dir=self.checkpoint,
            engine_dir=self.engine,
            dtype=self.dtype,
            device=self.vit_device.name,
            handoff_id=self.handoff_id,
        )

    @property
    def preprocessing(self) -> PreprocessingSettings:
        """The parameters of `preprocessing`."""
        options = _shared(self.settings, PreprocessingSettings)
        folders = (*self.settings.allowed_local_media_path, *filter(None, [self.files]))
        options["allowed_local_media_path"] = tuple(path.resolve() for path in folders)
        return PreprocessingSettings(
            **options, tokenizer_path=self.engine / "tokenizer.json", engine_dir=self.engine, handoff_id=self.handoff_id
        )

    def parameters(self) -> dict[str, dict[str, str]]:
        """Model name -> parameters of its config.pbtxt."""
        return {
            "preprocessing": to_parameters(self.preprocessing),
            "vit": to_parameters(self.vit),
            "tensorrt_llm": self._engine_parameters(),
        }

    def _engine_parameters(self) -> dict[str, str]:
        """By NVIDIA's names."""
        grammar = self.engine / GRAMMAR_FILE  # without it guided decoding is off: the backend would not load
        first = self.device.index
        gpus = [] if first is None else range(first, first + world_size(self.engine))
        kind = self.kind
        parameters = {
            "engine": str(kind),
            "unsupported_inputs": ",".join(kind.unsupported_inputs(self.engine)),
            "gpt_model_path": str(self.engine),
            "gpu_device_ids": ",".join(map(str, gpus)),
            "guided_decoding_backend": "xgrammar" if grammar.is_file() else "",
            "xgrammar_tokenizer_info_path": str(grammar) if grammar.is_file() else "",
        }
        if kind is EngineKind.VLLM:
            parameters |= to_parameters(VllmSettings(**_shared(self.settings, VllmSettings)))
        elif kind is EngineKind.EMBEDDED and self.settings.gpu_memory is not None:
            parameters["gpu_memory"] = str(self.settings.gpu_memory)
        if self.settings.kv_cache_fraction is not None:
            parameters["kv_cache_free_gpu_mem_fraction"] = str(self.settings.kv_cache_fraction)
        return parameters


def _shared(settings: RepositorySettings, model: type[BaseModel]) -> dict[str, Any]:
    """The settings that a model takes as they are; ``device`` and ``dtype`` are resolved first. None is the model's default."""
    names = set(model.model_fields) & set(type(settings).model_fields) - {"device", "dtype"}
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def render_repository(source: Path, target: Path, plan: RunPlan) -> list[str]:
    """Write a copy of the repository ``source`` with the run's values into the new directory ``target``.

    The copy stands for itself: a plain ``tritonserver --model-repository`` can run it.

    Returns:
        The names of the models, sorted.

    Raises:
        LaunchError: A config.pbtxt does not parse, or a model that the run has values for is absent.
    """
    parameters = plan.parameters()
    names = sorted(path.parent.name for path in source.glob("*/config.pbtxt"))
    if missing := sorted(set(parameters) - set(names)):
        raise LaunchError(f"{source} is not a complete model repository: {', '.join(missing)} missing")
    for name in names:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        (target / name / "1").mkdir(exist_ok=True)  # an ensemble's version directory is empty, which git does not keep
        config = read_config(source / name / "config.pbtxt")
        set_parameters(config, parameters.get(name, {}))
        _set_table_type(config, plan.dtype)
        if name == "vit":
            _set_instances(config, plan.vit_device)
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
