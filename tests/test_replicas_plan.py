"""What `serve --replicas` starts: how many, on which GPUs and ports, and with which of the options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from internvideo_server.launch import LaunchError
from internvideo_server.launch.replicas import Member, count_of, members_of, router_of
from internvideo_server.settings import ServeSettings, arguments_of, environment_of

CPU: dict[str, str] = {"PATH": ""}


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """An environment whose nvidia-smi shows so many GPUs."""

    def environ(gpus: int, **more: str) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        lines = "\n".join(f"{number}, NVIDIA H200, 590.44.01, 143771, 143160, 9.0" for number in range(gpus))
        program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{lines}\nEND\n")
        program.chmod(0o755)
        return {"PATH": str(tmp_path), **more}

    return environ


def settings(**changes: Any) -> ServeSettings:
    return ServeSettings(**{"device": "cuda", "replicas": "auto", "port": 0, **changes})


@pytest.mark.parametrize(
    ("gpus", "changes", "visible", "count"),
    [
        (4, {}, None, 4),
        (1, {}, None, 1),
        (0, {}, None, 1),
        (4, {"device": "cpu"}, None, 1),
        (4, {"device": "cpu", "replicas": "3"}, None, 3),
        (4, {"replicas": "2"}, None, 2),
        (4, {}, "2,3", 2),
        (4, {}, "GPU-a,GPU-b,GPU-c", 3),
        (4, {"tensor_parallel_size": 2}, None, 2),
        (3, {"device": "cuda:0", "vit_device": "cuda:1"}, None, 1),
        (8, {"replicas": "1"}, None, 1),
    ],
)
def test_auto_is_one_replica_for_each_gpu_and_one_without(
    host: Callable[..., dict[str, str]], gpus: int, changes: dict[str, Any], visible: str | None, count: int
) -> None:
    environ = host(gpus, **({"CUDA_VISIBLE_DEVICES": visible} if visible is not None else {}))
    assert count_of(settings(**changes), environ) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replicas": "3"}, "--replicas 3 with 1 GPU each: there are 2 here"),
        ({"replicas": "2", "tensor_parallel_size": 2}, "with 2 GPUs each: there are 2"),
        ({"device": "cuda:1"}, "each replica counts its own GPUs, from cuda:0"),
    ],
)
def test_more_replicas_than_gpus_are_refused(host: Callable[..., dict[str, str]], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        count_of(settings(**changes), host(2))


def test_each_replica_sees_its_own_gpus_alone(host: Callable[..., dict[str, str]]) -> None:
    environ = host(4, INTERNVIDEO_DEVICE="cuda")
    members = members_of(settings(tensor_parallel_size=2), "w", 2, environ)
    assert [member.gpus for member in members] == [("0", "1"), ("2", "3")]
    seen = members[1].environment(environ)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("2,3", "PCI_BUS_ID")
    chosen = members_of(settings(), "w", 2, host(8, CUDA_VISIBLE_DEVICES="7, 5"))
    assert [member.gpus for member in chosen] == [("7",), ("5",)]
    assert "CUDA_VISIBLE_DEVICES" not in members_of(settings(device="cpu"), "w", 1, CPU)[0].environment(CPU)


def members(**changes: Any) -> list[Member]:
    return members_of(settings(device="cpu", **changes), "whole", 2, CPU)


def test_what_belongs_to_the_front_is_the_routers_and_all_else_is_each_replicas(tmp_path: Path) -> None:
    options = settings(
        device="cpu",
        host="0.0.0.0",
        ssl_certfile=tmp_path / "c",
        ssl_keyfile=tmp_path / "k",
        api_key=(SecretStr("secret"),),
        num_frames=8,
        drain_timeout=7,
        request_timeout=99,
        max_restarts=2,
        run_directory=tmp_path / "runs",
    )
    first, second = members_of(options, "whole", 2, CPU)
    router = router_of(options, [first, second], tmp_path)
    assert (router.host, router.ssl_certfile, router.ssl_keyfile) == ("0.0.0.0", tmp_path / "c", tmp_path / "k")
    assert (router.drain_timeout, router.request_timeout, router.max_restarts) == (7, 99, 2)
    assert router.replica == (f"replica-0={first.url}", f"replica-1={second.url}")
    command = arguments_of(second.settings)
    for words in ("--replicas=1", "--name=whole-1", "--replica-name=replica-1", "--host=127.0.0.1", "--num-frames=8"):
        assert words in command
    assert f"--run-directory={tmp_path}/runs/replica-1" in command
    assert not [words for words in command if "ssl" in words or "secret" in words]
    assert environment_of(second.settings, {"INTERNVIDEO_REPLICAS": "2"}) == {"INTERNVIDEO_API_KEYS": "secret"}


def test_all_ports_are_free_and_different() -> None:
    ports = [
        getattr(member.settings, f"{name}port")
        for member in members(triton_http_port=0)
        for name in ("", "triton_grpc_", "triton_metrics_", "triton_http_")
    ]
    assert len(set(ports)) == 8 and all(ports)


@pytest.mark.parametrize("name", ["triton_grpc_port", "triton_metrics_port", "triton_http_port"])
def test_a_port_that_all_replicas_would_share_is_refused(name: str) -> None:
    with pytest.raises(LaunchError, match="free ports of its own"):
        members(**{name: 9000})


@pytest.mark.parametrize(
    ("changes", "hosts"),
    [
        ({}, ()),
        ({"host": "0.0.0.0"}, ("*",)),
        ({"host": "0.0.0.0", "allowed_hosts": ("video.example",)}, ("video.example",)),
    ],
)
def test_a_replica_answers_to_the_names_of_the_front(changes: dict[str, Any], hosts: tuple[str, ...]) -> None:
    assert {member.settings.allowed_hosts for member in members(**changes)} == {hosts}


@pytest.mark.parametrize("given", ["0", "-1", "many", "100", "2.5"])
def test_a_number_that_cannot_be_meant_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="replicas"):
        settings(replicas=given)
