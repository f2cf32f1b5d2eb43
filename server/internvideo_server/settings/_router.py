"""The settings of ``internvideo router``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ._command_line import Unit
from ._models import Host, Port, Seconds, _Request


class RouterSettings(_Request):
    """What HAProxy is told, in front of several replicas."""

    group = "Router"

    replica: tuple[str, ...] = Field(
        (), description="NAME=URL of a replica, which was started with --replica-name NAME; repeatable; others are added later"
    )
    host: Host = Field("127.0.0.1", description="address of the API")
    port: Port = Field(9990, description="port of the API; 0: a free one")
    metrics_host: Host = Field("127.0.0.1", description="address of /metrics (Prometheus) and of the router's own /health")
    metrics_port: Port = Field(9991, description="port of those")
    load_factor: int = Field(
        200, ge=101, le=1000, description="percent of the mean load up to which a replica gets its own videos; the rest goes on"
    )
    max_connections: int = Field(2000, ge=1, description="connections open at once; each takes up to 128 KiB")
    max_restarts: int = Field(10, ge=0, description="deaths of HAProxy within ten minutes that are healed")
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False), Unit("seconds")] = Field(
        30.0, description="time for requests under way after SIGTERM or Ctrl-C; a second signal ends them at once"
    )
    connect_timeout: Seconds = Field(2.0, description="time that a replica may take to accept a connection")
    check_interval: Seconds = Field(1.0, description="time between two looks at a replica's /health/ready")
    ssl_certfile: Path | None = Field(None, description="certificate chain (PEM) for HTTPS; without it HTTP")
    ssl_keyfile: Path | None = Field(None, description="its private key (PEM); without it that in the same file")
    replica_ca_file: Path | None = Field(
        None, description="authority (PEM) that signed the certificates of https:// replicas; without it the system's"
    )
    follow_dns: bool = Field(
        False, description="ask DNS for the replicas' names again and again (Kubernetes); a name may be missing at first"
    )
    router_directory: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"internvideo-router-{os.getuid()}",
        description="folder of this user alone, with HAProxy's configuration and its admin socket",
        json_schema_extra={"default_text": "internvideo-router-UID in the system's temporary folder"},
    )
