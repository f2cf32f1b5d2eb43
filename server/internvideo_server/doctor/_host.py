"""Checks of the machine: interpreter, libraries, tritonserver, GPU, shared memory, ports, media directories."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from internvideo_server.gpus import MIB, Gpu
from internvideo_server.launch import LaunchError, TritonServer, find_tritonserver, resolve_ports
from internvideo_server.memory import GIB, MemoryNeed
from internvideo_server.sandbox import Held

from ._report import Check, failed, ok, skipped, warning

# What passes between Triton and its Python models. Frames do so only where vit cannot be given their memory (128 of them are
# 77 MB), uploads always. Triton's own advice is 1 GiB.
_SHM_BYTES = 1 * GIB
_CUDA_13_1_DRIVER = 590  # container 26.07
_CUDA_13_DRIVER = 580  # any CUDA 13, by minor-version compatibility


def check_python() -> Check:
    """The interpreter and the packages that decide whether Triton's stub can run the models."""
    version = platform.python_version()
    found = []
    for package in ("numpy", "torch", "tritonclient"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            fix = f"pip install {package} (`make setup` installs everything)"
            return failed("python", f"{version} in {sys.prefix}, but {package} is not installed", fix)
    if int(metadata.version("numpy").split(".")[0]) >= 2:
        return failed("python", f"{version}, {', '.join(found)}", "pip install 'numpy>=1.26,<2': Triton's Python models need 1.x")
    return ok("python", f"{version} in {sys.prefix}, {', '.join(found)}")


def check_glibc() -> Check:
    """The C library against what the wheel of tritonserver was built for."""
    name, version = platform.libc_ver()
    if name != "glibc":
        return failed(
            "glibc", f"this system's C library is {name or 'unknown'}", "use a distribution with glibc, or the container"
        )
    try:
        wheel = metadata.distribution("nvidia-pytriton").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return ok("glibc", version)
    tag = re.search(r"manylinux_(\d+)_(\d+)", wheel)
    if tag and _numbers(version) < (int(tag[1]), int(tag[2])):
        needed = f"{tag[1]}.{tag[2]}"
        fix = f"use a distribution with glibc {needed} or newer (Debian 12, Ubuntu 22.04), or the container"
        return failed("glibc", f"{version}, the embedded tritonserver needs {needed}", fix)
    return ok("glibc", version)


def check_tritonserver(environ: Mapping[str, str]) -> tuple[list[Check], TritonServer | None]:
    """Where tritonserver is, its version, and whether its stub is for this Python (libpython and numpy included)."""
    try:
        server = find_tritonserver(environ)
    except LaunchError as error:
        reason, _, fix = str(error).partition(": ")
        return [failed("tritonserver", reason, fix)], None
    checks = [ok("tritonserver", f"{server.binary} ({_triton_version(server, environ)})")]
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    linked = _stub_python(server.python_stub)
    if linked and linked != wanted:
        fix = f"run the models with Python {linked} (in the container: its own python3), or use a stub built for {wanted}"
        checks.append(failed("python stub", f"{server.python_stub} is for Python {linked}, this is {wanted}", fix))
    else:
        checks.append(ok("python stub", f"for Python {linked or wanted}"))
    return checks, server


def _triton_version(server: TritonServer, environ: Mapping[str, str]) -> str:
    if version := environ.get("TRITON_SERVER_VERSION"):
        container = environ.get("NVIDIA_TRITON_SERVER_VERSION")
        return f"Triton {version}, container {container}" if container else f"Triton {version}"
    if "pytriton" in server.binary.parts:
        return f"nvidia-pytriton {metadata.version('nvidia-pytriton')}"
    return "version unknown"


def _stub_python(stub: Path) -> str:
    """The Python that a stub is linked to, "" where its file does not say."""
    name = re.search(rb"libpython(3\.\d+)m?\.so", stub.read_bytes())
    return name[1].decode() if name else ""


def check_backend(server: TritonServer, engine: Path) -> Check:
    """Whether this tritonserver can run this engine."""
    built = any(engine.glob("rank*.engine"))
    if built and not server.has_tensorrt_llm:
        fix = "run inside nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3, or export for the embedded engine (export_llm.py)"
        return failed("backend", "the engine is TensorRT-LLM's, this tritonserver has no tensorrtllm backend", fix)
    if built:
        return ok("backend", f"NVIDIA's, {server.backends / 'tensorrtllm'}")
    return ok("backend", "embedded (server/backends/tensorrtllm)")


def check_mpi(ranks: int, environ: Mapping[str, str]) -> Check:
    """mpirun, for engines of several ranks."""
    if ranks == 1:
        return skipped("mpirun", "one rank needs none")
    if program := shutil.which("mpirun", path=environ.get("PATH")):
        return ok("mpirun", f"{program}, {ranks} ranks")
    return failed("mpirun", f"the engine has {ranks} ranks and PATH has no mpirun", "run inside NVIDIA's container")


def check_gpus(gpus: Sequence[Gpu], device: int | None, *, tensorrt_llm: bool, ranks: int) -> list[Check]:
    """The driver, and that there are enough GPUs.

    Args:
        gpus: Those of the host.
        device: The first to be used; None is the CPU.
        tensorrt_llm: Whether the engine is TensorRT-LLM's.
        ranks: GPUs that it wants.
    """
    if device is None:
        if tensorrt_llm:
            return [failed("gpu", "a TensorRT-LLM engine needs a GPU, and none is to be used", "--device cuda")]
        return [skipped("gpu", "the CPU is used")]
    if len(gpus) < device + ranks:
        found = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in gpus) or "none (no working nvidia-smi)"
        fix = "install the driver, give the container its GPUs (--gpus), or use --device cpu"
        return [failed("gpu", f"{device + ranks} wanted, found {found}", fix)]
    used = gpus[device : device + ranks]
    checks = [ok("gpu", ", ".join(f"{gpu.index}: {gpu.name}, {gpu.total / GIB:.0f} GiB" for gpu in used))]
    gpu = used[0]
    if not tensorrt_llm or gpu.driver_major >= _CUDA_13_1_DRIVER:
        checks.append(ok("driver", gpu.driver))
    elif gpu.driver_major >= _CUDA_13_DRIVER:
        fix = f"driver {_CUDA_13_1_DRIVER} is what container 26.07 (CUDA 13.1) was made for"
        checks.append(warning("driver", f"{gpu.driver}: CUDA 13.1 runs by minor-version compatibility only", fix))
    else:
        fix = f"install driver {_CUDA_13_1_DRIVER}; data-centre GPUs can use the container's forward-compatibility package"
        checks.append(failed("driver", f"{gpu.driver} is too old for container 26.07 (CUDA 13.1)", fix))
    return checks


def check_gpu_memory(gpu: Gpu, need: MemoryNeed, kv_fraction: float) -> Check:
    """Free memory against weights, KV cache, prompt tables and the vision tower."""
    figures = f"{gpu.free / GIB:.1f} GiB free of {gpu.total / GIB:.1f}; needed {need.total / GIB:.1f}: {need.explain()}"
    smaller = "build with a smaller batch, fewer frames or --quantization int8/int4-awq, or spread it with --tp 2"
    if gpu.free < need.least:
        return failed("gpu memory", figures, f"free the GPU, or {smaller}")
    cache = (gpu.free - need.weights) * kv_fraction
    if gpu.free - need.weights - cache < need.vision + need.prompt_tables:
        fix = f"lower --kv-cache-fraction (now {kv_fraction}), or put the tower on another GPU (--vit-device)"
        return warning("gpu memory", f"{figures}; what the KV cache leaves may be too little for the vision tower", fix)
    if gpu.free < need.total:
        fix = f"long requests will wait for each other; else {smaller}"
        return warning("gpu memory", f"{figures}; the KV cache does not hold a full batch", fix)
    return ok("gpu memory", figures)


def check_shm(path: Path, ranks: int) -> Check:
    """The size of /dev/shm, where tensors between Triton and its Python models lie (and NCCL's between ranks)."""
    if not path.is_dir():
        return failed("shared memory", f"{path} does not exist", "mount a tmpfs there")
    usage = shutil.disk_usage(path)
    needed = _SHM_BYTES * ranks
    if usage.total < needed:
        fix = f"docker run --shm-size={needed // GIB}g (compose: shm_size; Kubernetes: an emptyDir of medium Memory)"
        return failed("shared memory", f"{path} has {usage.total / MIB:.0f} MiB, {needed / MIB:.0f} are needed", fix)
    if usage.free < needed // 2:
        fix = f"remove what earlier runs left: ls {path}"
        return warning("shared memory", f"{path}: {usage.free / MIB:.0f} of {usage.total / MIB:.0f} MiB are free", fix)
    return ok("shared memory", f"{path}: {usage.free / MIB:.0f} MiB free")


def check_sandbox(held: Held) -> Check:
    """That the processes which decode strangers' files reach nothing else."""
    if held.everything:
        return ok("sandbox", f"decoders reach no files, network or other programs (Landlock {held.landlock}, seccomp)")
    fix = "a kernel of 6.7 or later with Landlock (lsm=landlock,...), libseccomp2, and a container profile that lets both be used"
    return warning("sandbox", f"decoders are not kept from {held.missing}", fix)


def check_ports(ports: Mapping[str, tuple[str, int]]) -> Iterator[Check]:
    """That each port can be listened on. Flag -> (host, port); 0 is a free one."""
    for flag, (host, port) in ports.items():
        if not port:
            yield skipped(f"port {flag}", "a free one is chosen")
            continue
        try:
            resolve_ports({flag: (host, port)})
        except LaunchError as error:
            yield failed(f"port {flag}", str(error), f"end what listens there (ss -ltnp 'sport = :{port}'), or choose {flag} 0")
        else:
            yield ok(f"port {flag}", f"{host}:{port} is free")


def check_media_roots(roots: Sequence[Path]) -> Iterator[Check]:
    """That the directories for file:// can be read."""
    if not roots:
        yield skipped("media", "no --allowed-local-media-path: file:// URLs are refused")
    for root in roots:
        if not root.is_dir():
            yield failed("media", f"{root} is not a directory", "mount it, or correct --allowed-local-media-path")
        elif not os.access(root, os.R_OK | os.X_OK):
            fix = f"let user {os.geteuid()} read it (the container runs as user 1000)"
            yield failed("media", f"{root} cannot be read by this user", fix)
        else:
            yield ok("media", f"file:// may point into {root}")


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)
