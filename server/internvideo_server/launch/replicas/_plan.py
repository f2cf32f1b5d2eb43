"""Which replicas there are, and what each of them and the router is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvideo_server.engine_directory import world_size
from internvideo_server.gpus import find_gpus, visible_devices
from internvideo_server.launch._device import resolve_device
from internvideo_server.launch._errors import LaunchError
from internvideo_server.launch._ports import resolve_ports
from internvideo_server.launch.router import Replica
from internvideo_server.settings import RouterSettings, ServeSettings

_LOOPBACK = "127.0.0.1"
#: Ports of a server that are chosen free, with the only other value that may stand there: the default.
_TRITON_PORTS = {"triton_grpc_port": 8001, "triton_metrics_port": 8002, "triton_http_port": None}


@dataclass(frozen=True)
class Member:
    """One replica.

    Attributes:
        name: The router's for it.
        settings: As one ``serve`` takes them.
        gpus: As CUDA_VISIBLE_DEVICES names them; empty: it has none.
    """

    name: str
    settings: ServeSettings
    gpus: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://{_LOOPBACK}:{self.settings.port}"

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """With its GPUs alone, numbered as nvidia-smi numbers them."""
        if not self.gpus:
            return dict(environ)
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **environ, **own}


def count_of(options: ServeSettings, environ: Mapping[str, str]) -> int:
    """How many replicas ``--replicas`` means here; 1: a plain server.

    Raises:
        LaunchError: There are not so many GPUs, or no place to count them from.
    """
    if options.replicas == "1":
        return 1
    each, gpus = _gpus_of_each(options), _gpus_of_host(environ)
    if options.replicas == "auto":
        return max(1, len(gpus) // each) if each else 1
    if each and len(gpus) < int(options.replicas) * each:
        raise LaunchError(
            f"--replicas {options.replicas} with {each} GPU{'s' * (each > 1)} each: there are {len(gpus)} here "
            "(nvidia-smi, CUDA_VISIBLE_DEVICES)"
        )
    return int(options.replicas)


def members_of(options: ServeSettings, name: str, count: int, environ: Mapping[str, str]) -> list[Member]:
    """The replicas, on free ports of the loopback; what belongs to the front is not theirs.

    Args:
        options: Of the whole.
        name: Of the whole; theirs are NAME-0, NAME-1, ...
        count: How many.
        environ: Tells of the GPUs.

    Raises:
        LaunchError: A port of Triton was given, or none is free.
    """
    for field, default in _TRITON_PORTS.items():
        if (given := getattr(options, field)) not in (default, 0):
            flag = f"--{field.replace('_', '-')}"
            raise LaunchError(f"{flag} {given}: with --replicas each Triton gets free ports of its own: leave it out")
    wanted = {"port": _LOOPBACK, "triton_grpc_port": options.triton_host, "triton_metrics_port": options.triton_metrics_host}
    if options.triton_http_port is not None:
        wanted["triton_http_port"] = options.triton_host
    free = {f"{field} {place}": (host, 0) for place in range(count) for field, host in wanted.items()}
    ports = resolve_ports(free)
    each, gpus = _gpus_of_each(options), _gpus_of_host(environ)
    # A name of the front's is in the Host of what comes through it.
    hosts = options.allowed_hosts or (() if options.host in ("localhost", "::1") or options.host.startswith("127.") else ("*",))
    members = []
    for place in range(count):
        called = f"{options.replica_name or 'replica'}-{place}"
        own = {
            "replicas": "1",
            "name": f"{name}-{place}",
            "replica_name": called,
            "host": _LOOPBACK,
            "ssl_certfile": None,
            "ssl_keyfile": None,
            "allowed_hosts": hosts,
            "run_directory": options.run_directory and options.run_directory / f"replica-{place}",
            **{field: ports[f"{field} {place}"] for field in wanted},
        }
        settings = options.model_copy(update=own)
        members.append(Member(called, settings, tuple(gpus[place * each : (place + 1) * each])))
    return members


def router_of(options: ServeSettings, members: Sequence[Member], directory: Path) -> RouterSettings:
    """The front: the address, TLS and the drain are its own.

    Raises:
        LaunchError: A port is taken.
    """
    ports = resolve_ports({"--port": (options.host, options.port), "the router's metrics": (_LOOPBACK, 0)})
    return RouterSettings(
        replica=tuple(str(Replica.parse(f"{member.name}={member.url}")) for member in members),
        host=options.host,
        port=ports["--port"],
        metrics_port=ports["the router's metrics"],
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        request_timeout=options.request_timeout,
        drain_timeout=options.drain_timeout,
        max_restarts=options.max_restarts,
        router_directory=directory,
    )


def _gpus_of_each(options: ServeSettings) -> int:
    """0: it runs on the CPU."""
    devices = (options.device, options.vit_device or options.device)
    numbers = [device.index for device in map(resolve_device, devices) if device.index is not None]
    if not numbers:
        return 0
    if min(numbers):
        raise LaunchError(f"--device cuda:{min(numbers)} with --replicas: each replica counts its own GPUs, from cuda:0 on")
    ranks = options.tensor_parallel_size * (1 if options.engine is None else world_size(options.engine))
    return max(ranks, max(numbers) + 1)


def _gpus_of_host(environ: Mapping[str, str]) -> list[str]:
    visible = visible_devices(environ)
    return [str(gpu.index) for gpu in find_gpus(environ)] if visible is None else visible
