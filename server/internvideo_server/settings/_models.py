"""The settings, in groups by who reads them. A field's description is its help on the command line and in the docs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from internvideo_server.limits import FRAMES_PER_GROUP
from internvideo_server.routing import NAME

from ._command_line import Unit

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
VideoReader = Literal["auto", "pyav", "nvdec", "decord"]
VitQuantization = Literal["none", "fp8"]

Frames = Annotated[int, Field(ge=FRAMES_PER_GROUP, multiple_of=FRAMES_PER_GROUP)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Unit("seconds")]
MiB = Annotated[int, Unit("MiB")]
Bytes = Annotated[int, Field(ge=1), Unit("bytes")]
Pixels = Annotated[int, Field(ge=1), Unit("pixels")]


def _host_alone(host: str) -> str:
    address = host.strip("[]")
    if not host or any(each in host for each in "/@ ") or (":" in host and not set(address) <= set("0123456789abcdefABCDEF:.")):
        raise ValueError("the name or address of a host alone, without http:// and without a port")
    return host


def _name_and_value(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    if not equals or not name.strip().replace("-", "_").isidentifier():
        raise ValueError("NAME=VALUE is needed, for example max_num_batched_tokens=4096")
    return argument


Host = Annotated[str, AfterValidator(_host_alone)]
EngineArg = Annotated[str, AfterValidator(_name_and_value)]
HandoffId = Annotated[
    str, Field(pattern=r"^[\w-]{1,64}$", description="names the local socket between preprocessing and vit; random for each run")
]


class Settings(BaseModel):
    """Common to all: values do not change, unknown names are refused."""

    # defer_build: each process of a run uses one or two of these twenty; building them all would hold up its start.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    group: ClassVar[str] = "Options"


class _Request(Settings):
    """What every stage of a request must know."""

    group = "Requests"

    request_timeout: Seconds = Field(300.0, description="time that a whole request may take, from the fetch to the last token")


class _Queue(Settings):
    group = "Requests"
    max_queue_size: int = Field(64, ge=1, description="requests that may wait for a model beside those at work")


class _MostFrames(Settings):
    """As the launcher has worked it out."""

    group = "Videos"

    max_frames: Frames = Field(128, description="the most frames that a request may ask for")


class _Length(Settings):
    """The one number from which the length of everything follows (``internvideo_server.context``)."""

    group = "Videos"

    max_frames: Frames | None = Field(
        None,
        description="the most frames that a request may ask for; a multiple of 4 (default: 128 on a CPU, 512 on a GPU with room)",
    )
    max_model_len: str = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{0,6})$",
        description="tokens of prompt and answer together, at most 32768; auto: what --max-frames needs, and 2048 of text and "
        "2048 of answer",
    )

    @property
    def wanted_length(self) -> int | None:
        """``max_model_len`` as a number; None: ``auto``."""
        return None if self.max_model_len == "auto" else int(self.max_model_len)


class _Preprocessing(_Request, _Queue):
    """Options of the model `preprocessing`."""

    group = "Media"

    num_frames: Frames = Field(80, description="frames of a video where the request does not say; a multiple of 4")
    decode_workers: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        description="processes that decode video, one medium at a time each",
        json_schema_extra={"default_text": "cores, at most 4"},
    )
    video_reader: VideoReader = Field(
        "auto", description="pyav (auto: exact and fast), nvdec (the same frames by a GPU), decord (the original model's)"
    )
    frame_cache_mb: MiB = Field(1024, ge=0, description="decoded frames to keep; 0: none")
    allowed_local_media_path: tuple[Path, ...] = Field((), description="folder that file:// URLs may point into; repeatable")
    http_media: bool = Field(True, description="fetch http(s) media")
    allowed_media_domains: tuple[Host, ...] = Field(
        (), description="host that http(s) media may come from; repeatable (default: any public one)"
    )
    allow_private_media_host: tuple[Host, ...] = Field(
        (), description="host that media may come from although its addresses are not public (an object store); repeatable"
    )
    max_media_bytes: Bytes = Field(512 << 20, description="size of one medium, however it comes")
    max_request_media_bytes: Bytes = Field(1 << 30, description="size of all media of one request, those of equal URLs once")
    media_read_timeout: Seconds = Field(10.0, description="time that a media server may be silent")
    media_timeout: Seconds = Field(120.0, description="time that one download may take")
    max_video_pixels: Pixels = Field(4096 * 4096, description="width x height of a video; a decoder holds a dozen such frames")
    max_image_pixels: Pixels = Field(100_000_000, description="width x height of an image")
    max_video_duration: Seconds = Field(6 * 3600.0, description="length of a video")
    image_frames_threshold: int = Field(
        8, ge=0, description="so many images in a row are images; more are the frames of one video, in groups of 4"
    )
    strict_media: bool = Field(False, description="refuse a video if any of its sampled frames is damaged, instead of telling")
    media_memory_mb: MiB = Field(
        4096, ge=1, description="media of all requests, fetched or sent, that wait for a decoder; more are answered 429"
    )
    decode_timeout: Seconds | None = Field(
        None, description="time that one medium may take to decode (default: half a request's)"
    )
    max_decode_cost: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="gigapixels (packets x width x height) of a video that one thread must decode (default: one for each second "
        "of the decode timeout, fewer where decoders share a core)",
    )
    decoder_memory_mb: MiB = Field(4096, ge=256, description="address space of one decoder process")


class PreprocessingSettings(_Preprocessing, _MostFrames):
    """The parameters of `preprocessing`."""

    tokenizer_path: Path = Field(description="tokenizer.json of the engine directory")
    engine_dir: Path = Field(description="engine directory, whose config.json holds the limits")
    handoff_id: HandoffId


class _Vit(_Queue):
    """Options of the model `vit`."""

    group = "Vision tower"

    vit_quantization: VitQuantization = Field("none", description="of the vision tower's MLPs: fp8 is faster and less exact")
    embedding_cache_mb: Annotated[MiB, Field(ge=0)] | None = Field(
        None,
        description="embeddings to keep, on the tower's device; 0: none",
        json_schema_extra={"default_text": "an eighth of the memory left there, 256 to 2048"},
    )
    cuda_region_count: int = Field(8, ge=1, description="prompt tables that vit makes and hands over at once; more wait")
    cuda_region_mb: Annotated[MiB, Field(ge=1)] | None = Field(
        None, description="size of each prompt table (default: the engine's largest)"
    )
    cuda_region_prefix: str = Field(
        "internvideo_vit_", pattern=r"^[\w-]+$", description="what messages call the memory of the prompt tables"
    )

    def region_bytes(self, largest: int) -> int:
        """Of each prompt table; ``largest``: the engine's."""
        return largest if self.cuda_region_mb is None else self.cuda_region_mb << 20


class VitSettings(_Vit):
    """The parameters of `vit`."""

    checkpoint_dir: Path = Field(description="the checkpoint, as Hugging Face has it")
    engine_dir: Path = Field(description="engine directory: the table's dtype and width must be the engine's")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="of the tower and the prompt table")
    device: str = Field(pattern=r"^(cpu|cuda:\d+)$", description="where the tower runs")
    handoff_id: HandoffId


class _Adapter(_Request):
    """Options of the OpenAI adapter."""

    group = "API"

    host: str = Field("127.0.0.1", description="address of the OpenAI API")
    port: Port = Field(9997, description="port of the OpenAI API; 0: a free one, as for every port")
    served_model_name: tuple[str, ...] = Field(
        ("InternVideo2_5",), min_length=1, description="the model's id in the API; repeatable, the first one is shown first"
    )
    page: bool = Field(True, description="serve the page for people at / and the docs at /docs/")
    adapter_workers: int = Field(1, ge=1, le=64, description="processes of the adapter")
    max_body_mb: MiB = Field(256, ge=1, description="size of a request's body; a video in a data: URL takes 4/3 of its own")
    max_json_mb: MiB = Field(8, ge=1, description="size of a request's body beside its media")
    max_bodies_mb: MiB = Field(1024, ge=1, description="all bodies that one adapter process holds at once; more are answered 503")
    first_token_timeout: Seconds | None = Field(
        None, description="longest silence of the models before the first token (default: the whole request's time)"
    )
    inactivity_timeout: Seconds = Field(60.0, description="longest silence between two tokens")
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False), Unit("seconds")] = Field(
        30.0, description="time for requests under way after SIGTERM or Ctrl-C; a second signal ends them at once"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://.+",
        description="OpenTelemetry collector (OTLP over HTTP, http://HOST:4318) that traces go to; needs the extra [otel]",
    )
    log_format: Literal["text", "json"] = Field("text", description="of the adapter's log; json: an object a line")


class _Doors(Settings):
    """Who may ask, and how slowly."""

    group = "Access"

    api_key: tuple[SecretStr, ...] = Field((), description="key that callers need; repeatable")
    api_key_file: Path | None = Field(None, description="file of API keys, one a line; read again on SIGHUP")
    metrics_key: SecretStr | None = Field(None, description="key of /metrics (default: an API key, where there are any)")
    max_requests_per_key: Annotated[int, Field(ge=1)] | None = Field(
        None, description="requests of one key at once, over all adapter processes (default: any number)"
    )
    max_bodies_mb_per_key: Annotated[MiB, Field(ge=1)] | None = Field(
        None, description="bodies of one key held at once, by all adapter processes (default: any number)"
    )
    cache_salt: Literal["none", "key"] = Field(
        "none", description="key: cached videos are shared among the requests of one key only"
    )
    ssl_certfile: Path | None = Field(None, description="certificate chain (PEM) for HTTPS, read again on SIGHUP (default: HTTP)")
    ssl_keyfile: Path | None = Field(None, description="its private key (PEM) (default: in the same file)")
    allowed_origins: tuple[str, ...] = Field((), description="origin whose pages may use the API (CORS); repeatable; *: all")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="name that a request's Host may have; repeatable; *: any (default: any, on the loopback its own names)"
    )
    max_connections: int = Field(1024, ge=1, description="connections open at once to one adapter process")
    headers_timeout: Seconds = Field(15.0, description="time in which a request's headers have to come")
    body_timeout: Seconds = Field(30.0, description="longest silence within a request's body")
    min_body_rate: int = Field(1024, ge=0, description="bytes a second that a body comes with at least")
    keep_alive_timeout: int = Field(75, ge=1, description="seconds that an idle connection stays open")


class _State(Settings):
    """What the adapter keeps between requests."""

    group = "Files"

    max_file_mb: MiB = Field(1024, ge=1, description="size of one uploaded file")
    file_quota_mb: MiB = Field(8192, ge=1, description="all uploaded files of one key")
    file_ttl: Seconds = Field(24 * 3600.0, description="time that uploaded files and stored responses are kept")
    replica_name: Annotated[str, Field(pattern=rf"^{NAME}$")] | None = Field(
        None,
        description="what the router calls this replica: ids of its files and responses carry it; only behind a router",
    )


class AdapterSettings(_Adapter, _Doors, _State, _MostFrames):
    """What one adapter process is told."""

    group = "Adapter"

    triton: str = Field(description="HOST:PORT of Triton's gRPC endpoint")
    tokenizer: Path = Field(description="tokenizer.json of the engine directory; the engine's config.json stands beside it")
    triton_secret_file: Path | None = Field(None, description="file with the secret of Triton's control protocols")
    state_directory: Path | None = Field(None, description="folder of uploaded files and stored responses (default: no files)")
    examples: Path | None = Field(None, description="folder of example videos for the page (default: it offers none)")
    run_state: Path | None = Field(
        None, description="state.json of the run, where the launcher writes what is dead (default: the models are asked)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of the adapter's log")


class _Vllm(Settings):
    """Options of the language model on vLLM."""

    group = "vLLM"

    llm_quantization: Literal["none", "fp8", "int8"] = Field(
        "none", description="of the language model's weights: fp8 at the start; int8 needs a prepared checkpoint"
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8"] = Field(
        "auto", description="of keys and values; auto: the model's"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one language model is spread over")
    engine_arg: tuple[EngineArg, ...] = Field((), description="NAME=VALUE of vLLM's EngineArgs; repeatable")


class _GpuMemory(Settings):
    group = "Model"

    gpu_memory: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="GiB of a GPU for tower, tables and language model together (default: what is free less 2)"
    )


class VllmSettings(_Vllm, _GpuMemory):
    """What the backend reads of the parameters of `tensorrt_llm` where vLLM is the engine."""


class EngineSettings(_GpuMemory):
    """What the embedded engine reads of the parameters of `tensorrt_llm`, which are NVIDIA's in name and default."""

    gpt_model_path: Path = Field(description="engine directory")
    gpu_device_ids: str = Field(
        "", pattern=r"^(\d+(,\d+)*)?$", description="GPUs, one a rank, separated by commas (default: the CPU)"
    )
    enable_kv_cache_reuse: bool = Field(True, description="share the KV cache of equal beginnings")
    exclude_input_in_output: bool = Field(False, description="answer with new tokens alone where the request does not say")
    cancellation_check_period_ms: int = Field(100, ge=1, description="milliseconds between looks for clients that left")


class _Run(Settings):
    """Which model, and where it runs."""

    group = "Model"

    checkpoint: Path | None = Field(None, description="model directory (default: the small demo model)")
    engine: Path | None = Field(None, description="engine directory (default: exported once and cached)")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N")
    vit_device: Device | None = Field(None, description="of the vision tower (default: where the engine runs)")
    dtype: Dtype = Field(
        "auto", description="of tower and engine; auto: the engine's, else float32 on a CPU and bfloat16 on CUDA"
    )
    llm_engine: Literal["auto", "tensorrt_llm", "vllm", "embedded"] = Field(
        "auto", description="auto: NVIDIA's for its engine directories; vllm on a GPU where it is installed; embedded elsewhere"
    )
    kv_cache_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of the free GPU memory for a TensorRT-LLM engine's KV cache (default: as the repository says)"
    )


class RepositorySettings(_Run, _Length, _Preprocessing, _Vit, _Vllm, _GpuMemory):
    """What a rendered model repository holds."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_frames is not None and self.num_frames > self.max_frames:
            raise ValueError(f"--num-frames {self.num_frames} is more than --max-frames {self.max_frames}")
        return self


class ServeSettings(RepositorySettings, _Adapter, _Doors, _State):
    """The settings of ``internvideo serve``."""

    group = "Server"

    triton_host: str = Field("127.0.0.1", description="address of Triton's gRPC; who reaches it may infer")
    triton_http_port: Port | None = Field(None, description="Triton's HTTP port (default: no HTTP, which is safer)")
    triton_grpc_port: Port = Field(8001, description="Triton's gRPC port")
    triton_metrics_host: str = Field("127.0.0.1", description="address of Triton's metrics page")
    triton_metrics_port: Port = Field(8002, description="Triton's metrics port")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")] | None = Field(
        None, description="what `internvideo status` and `stop` call this server; without it an id"
    )
    replicas: str = Field(
        "1",
        pattern=r"^(auto|[1-9][0-9]?)$",
        description="complete servers on this host, each on its own GPU, with a router before them; auto: one for each GPU, one "
        "without any",
    )
    run_directory: Path | None = Field(None, description="keep the rendered repository and the logs here; a new or empty folder")
    mps: Literal["auto", "on", "off"] = Field(
        "auto", description="CUDA's Multi-Process Service; auto: where tower and engine share one GPU and it can be started"
    )
    ready_timeout: Seconds = Field(600.0, ge=1, description="time that the start may take")
    max_restarts: int = Field(
        10, ge=0, description="deaths of a process that are healed within ten minutes; one more ends serve with exit code 3"
    )
    verbose: bool = Field(False, description="show the logs of Triton and the adapter")

    @property
    def listeners(self) -> dict[str, tuple[str, int]]:
        """Option -> (host, port) of what will be listened on."""
        ports = {
            "--port": (self.host, self.port),
            "--triton-http-port": (self.triton_host, self.triton_http_port),
            "--triton-grpc-port": (self.triton_host, self.triton_grpc_port),
            "--triton-metrics-port": (self.triton_metrics_host, self.triton_metrics_port),
        }
        return {flag: (host, port) for flag, (host, port) in ports.items() if port is not None}
