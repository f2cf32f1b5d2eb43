"""docker/: images, entry point, compose file. No image can be built where these tests run; all else about them is tried."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

DOCKER = ROOT / "docker"
SERVER = (DOCKER / "server.Dockerfile").read_text()
VLLM = (DOCKER / "vllm.Dockerfile").read_text()
CLIENT = (DOCKER / "client.Dockerfile").read_text()
CPU = (DOCKER / "cpu.Dockerfile").read_text()

# Of the package's requirements, what the server image does not install, and why.
NOT_IN_THE_SERVER_IMAGE = {
    "torch": "the image's own",
    "numpy": "the image's own",
    "transformers": "the image's own; only the embedded engine needs this project's version",
    "llguidance": "only the embedded engine follows guides by it",
    "nvidia-pytriton": "the image has its own tritonserver",
    "sentencepiece": "only for training the tiny checkpoint's tokenizer",
}


def requirements(lines: list[str]) -> dict[str, str]:
    """Name (without extras) -> version specifier."""
    found: dict[str, str] = {}
    for line in lines:
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?\s*([^#;]*)", line.strip()):
            found[match[1].lower()] = match[2].strip()
    return found


def test_the_server_image_installs_what_the_package_requires_in_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = requirements([*project["dependencies"], *project["optional-dependencies"]["server"]])
    image = requirements((DOCKER / "requirements.server.txt").read_text().splitlines())
    assert image == {name: version for name, version in wanted.items() if name not in NOT_IN_THE_SERVER_IMAGE}
    assert wanted.keys() >= NOT_IN_THE_SERVER_IMAGE.keys()


# ---- Dockerfiles


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, arguments), comments dropped and continued lines joined."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(head, rest) for line in joined.splitlines() if line.strip() for head, _, rest in [line.partition(" ")]]


@pytest.mark.parametrize("dockerfile", [SERVER, VLLM, CLIENT, CPU], ids=["server", "vllm", "client", "cpu"])
def test_images_run_as_a_plain_user(dockerfile: str) -> None:
    users = [arguments for name, arguments in instructions(dockerfile) if name == "USER"]
    assert users[-1] == "1000:1000"


def test_the_server_image_can_tell_its_health() -> None:
    health = next(arguments for name, arguments in instructions(SERVER) if name == "HEALTHCHECK")
    assert "/health/ready" in health
    assert "ProxyHandler({})" in health  # Docker hands its proxy settings on to containers


def test_a_private_checkout_makes_an_image_that_its_user_can_read() -> None:
    steps = instructions(SERVER)
    opened = steps.index(next(step for step in steps if step[0] == "RUN" and "chmod -R a+rX /opt/internvideo/src" in step[1]))
    assert all(i < opened for i, (name, _) in enumerate(steps) if name == "COPY")


def test_the_server_image_stands_on_the_pinned_container_and_leaves_its_packages_alone() -> None:
    assert "ARG BASE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3" in SERVER
    assert "PMIX_MCA_gds=hash" in SERVER
    assert "pip install" not in SERVER  # overlay.py alone installs, and cannot replace anything


def test_the_image_with_vllm_is_the_server_image_on_another_base() -> None:
    def common(dockerfile: str) -> list[tuple[str, str]]:
        return [step for step in instructions(dockerfile) if step[0] not in ("ARG", "ENV")]

    assert common(VLLM) == common(SERVER)
    assert "ARG BASE=nvcr.io/nvidia/tritonserver:26.08-vllm-python-py3" in VLLM
    settings = dict(part.split("=", 1) for name, value in instructions(VLLM) if name == "ENV" for part in value.split())
    assert settings["INTERNVIDEO_CACHE"] == "/var/cache/internvideo"


@pytest.mark.parametrize("name", ["server", "vllm", "client", "cpu"])
def test_what_an_image_copies_exists_and_is_let_through(name: str) -> None:
    dockerfile = (DOCKER / f"{name}.Dockerfile").read_text()
    let_through = {
        line[1:] for line in (DOCKER / f"{name}.Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for instruction, arguments in instructions(dockerfile):
        if instruction == "COPY" and not arguments.startswith("--from"):
            copied |= set(arguments.split()[:-1])
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)


# ---- overlay.py


def wheel(directory: Path, name: str, version: str, requires: str = "") -> None:
    """A minimal wheel with one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def locked(file: Path) -> str:
    """A wheel's line of a lock."""
    name, version, *_ = file.name.split("-")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


class Overlay:
    """overlay.py over this interpreter's environment, which plays the image's."""

    def __init__(self, root: Path) -> None:
        self.target, self.wheels, self.source = root / "overlay", root / "wheels", root / "source"
        self.wheels.mkdir()
        self.source.mkdir()
        self.requirements, self.lock = root / "requirements.txt", root / "requirements.lock"

    def make(self, *lines: str) -> subprocess.CompletedProcess[str]:
        self.requirements.write_text("\n".join(lines))
        if not self.lock.exists():
            self.lock.write_text("".join(map(locked, self.wheels.iterdir())))
        command = [sys.executable, str(DOCKER / "overlay.py"), str(self.target), "--requirements", str(self.requirements)]
        command += ["--lock", str(self.lock), "--source", str(self.source)]
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def python(self, code: str) -> str:
        command = [str(self.target / "bin" / "python3"), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay(tmp_path)


def test_the_overlay_adds_what_is_missing_and_keeps_the_images_packages(overlay: Overlay) -> None:
    wheel(overlay.wheels, "lab_new", "1.0", requires="lab_other")
    wheel(overlay.wheels, "lab_other", "2.0")
    wheel(overlay.wheels, "rich", "99.0")  # the image's is new enough
    (overlay.source / "internvideo_client").mkdir()
    (overlay.source / "internvideo_client" / "__init__.py").touch()
    (overlay.source / "internvideo_client" / "cli.py").write_text("def main():\n    print('from the source')\n")
    result = overlay.make("lab_new", "rich>=14")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "over the image's Python: lab_new, lab_other"
    assert overlay.python("import lab_new, lab_other; print(lab_new.VERSION, lab_other.VERSION)") == "1.0 2.0"
    places = overlay.python("import numpy, rich, torch; print(numpy.__file__, rich.__file__, torch.__file__)").split()
    assert all(place.startswith(f"{sys.prefix}/") for place in places)
    launcher = overlay.target / "bin" / "internvideo"
    assert subprocess.run([launcher], capture_output=True, text=True, check=True, cwd="/").stdout == "from the source\n"


def test_the_overlay_puts_a_newer_version_over_an_old_one_of_the_image(overlay: Overlay) -> None:
    wheel(overlay.wheels, "iniconfig", "99.0")  # a package that this environment has in an older version
    result = overlay.make("iniconfig>=99")
    assert result.returncode == 0, result.stderr
    assert overlay.python("import iniconfig; print(iniconfig.VERSION)") == "99.0"
    import iniconfig

    assert not hasattr(iniconfig, "VERSION")  # the image's own is as it was


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_the_overlay_refuses_another_version_of_what_nvidias_libraries_were_built_for(overlay: Overlay, package: str) -> None:
    wheel(overlay.wheels, package, "99.0")
    wheel(overlay.wheels, "lab_greedy", "1.0", requires=f"{package}>=99")
    result = overlay.make("lab_greedy")
    assert result.returncode != 0
    assert "lab-greedy" in result.stdout + result.stderr


def test_the_overlay_refuses_what_is_not_of_its_lock(overlay: Overlay) -> None:
    wheel(overlay.wheels, "lab_new", "1.0")
    overlay.lock.write_text("")
    assert "no version is locked" in overlay.make("lab_new").stderr
    wheel(overlay.wheels, "lab_new", "1.0", requires="lab_other")  # another content under the same name
    wheel(overlay.wheels, "lab_other", "1.0")
    overlay.lock.write_text("".join(map(locked, overlay.wheels.iterdir())))
    wheel(overlay.wheels, "lab_new", "1.0", requires="lab_other>=1")
    shutil.rmtree(overlay.target)
    result = overlay.make("lab_new")
    assert result.returncode != 0
    assert "DO NOT MATCH THE HASHES" in result.stderr


@pytest.mark.parametrize("name", ["server", "client", "cpu"])
def test_the_locks_hold_a_version_with_hashes_of_each_requirement(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"]
    if name == "server":
        lines = (DOCKER / "requirements.server.txt").read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith("#")]
    else:
        extra = project["project"]["optional-dependencies"]["server"] if name == "cpu" else []
        wanted = [*wanted, *project["build-system"]["requires"], *(each for each in extra if not each.startswith("torch="))]
    text = (DOCKER / f"requirements.{name}.lock").read_text().replace("\\\n", " ")
    entries = {line.partition("==")[0]: line for line in text.splitlines()}
    for each in map(Requirement, wanted):
        version = entries[canonicalize_name(each.name)].partition("==")[2].split()[0]
        assert each.specifier.contains(version), f"{each} and {version}: make lock"
    assert all("--hash=sha256:" in line for line in entries.values())


@pytest.mark.parametrize("dockerfile", [CLIENT, CPU], ids=["client", "cpu"])
def test_the_images_without_nvidias_install_by_hashes_alone(dockerfile: str) -> None:
    steps = " && ".join(arguments for name, arguments in instructions(dockerfile) if name == "RUN").split(" && ")
    installs = [step for step in steps if "pip install" in step]
    assert "--require-hashes --no-deps" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    torch = next(each for each in project if each.startswith("torch="))
    assert [step.split()[-1] for step in installs[1:-1]] == ([torch] if dockerfile == CPU else [])


# ---- entrypoint.sh


@pytest.fixture
def entrypoint(tmp_path: Path) -> Any:
    """Run entrypoint.sh where `internvideo` and `python3` print how they are called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("internvideo", "python3"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "INTERNVIDEO_HOME": "/src"}

    def run(*arguments: str) -> str:
        command = [str(DOCKER / "entrypoint.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ([], "internvideo serve"),
        (["serve", "--engine", "/an engine"], "internvideo serve --engine /an engine"),
        (["doctor", "--json"], "internvideo doctor --json"),
        (["build", "/checkpoint", "--out", "/out"], "python3 /src/build_scripts/build.py /checkpoint --out /out"),
        (["export", "/checkpoint", "--out", "/out"], "python3 /src/build_scripts/export_llm.py /checkpoint --out /out"),
        (["echo", "as it is"], "as it is"),
    ],
)
def test_the_entry_point_is_the_launcher(entrypoint: Any, arguments: list[str], called: str) -> None:
    assert entrypoint(*arguments) == called


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: apt install shellcheck")
def test_the_entry_point_is_sound_shell() -> None:
    subprocess.run(["shellcheck", str(DOCKER / "entrypoint.sh")], check=True)


# ---- compose.yaml


def serve_flags() -> set[str]:
    """The flags of `internvideo serve`."""
    result = subprocess.run(
        [sys.executable, "-c", "from internvideo_client.cli import main; main()", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"},
    )
    return set(re.findall(r"--[a-z-]+", result.stdout))


def adapter_flags() -> set[str]:
    """The flags of the adapter."""
    result = subprocess.run(
        [sys.executable, "-m", "internvideo_client.adapter", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"},
    )
    return set(re.findall(r"--[a-z-]+", result.stdout))


def flags_in(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compose file as docker-compose understands it."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose: apt install docker-compose")
    settings = tmp_path_factory.mktemp("compose") / "settings.env"
    settings.write_text("INTERNVIDEO_REQUEST_TIMEOUT=900\n")
    wishes = {
        "CHECKPOINT": "/models/checkpoint",
        "ENGINE": "/models/engine",
        "PORT": "8080",
        "SERVER_IMAGE": "internvideo-vllm",
        "DOCKERFILE": "docker/vllm.Dockerfile",
        "GPU": "3",
        "SETTINGS": str(settings),
    }
    environment = {**os.environ, **wishes}
    command = [program, "-f", str(DOCKER / "compose.yaml"), "config"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    document: dict[str, Any] = yaml.safe_load(output)
    return document["services"]  # type: ignore[no-any-return]


def test_compose_reserves_the_gpu_and_the_shared_memory(compose: dict[str, Any]) -> None:
    server = compose["server"]
    [device] = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["3"], "capabilities": ["gpu"]}
    assert server["shm_size"] == "4gb"
    assert server["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert "/models/checkpoint:/checkpoint:ro" in server["volumes"]
    assert "/models/engine:/engine:ro" in server["volumes"]


def test_compose_takes_another_image(compose: dict[str, Any]) -> None:
    server = compose["server"]
    assert (server["image"], server["build"]["dockerfile"]) == ("internvideo-vllm", "docker/vllm.Dockerfile")
    assert any(str(volume).startswith("cache:/var/cache/internvideo") for volume in server["volumes"])


def test_compose_gives_up_every_right_and_writes_nowhere_else(compose: dict[str, Any]) -> None:
    server = compose["server"]
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert server["read_only"] is True
    written = [str(volume) for volume in server["volumes"] if not str(volume).endswith(":ro")]
    assert [volume.partition(":")[2].partition(":")[0] or volume for volume in written] == ["/var/cache/internvideo", "/tmp"]


def test_compose_publishes_the_api_alone(compose: dict[str, Any]) -> None:
    """Triton keeps to the container's loopback; its metrics are read from the network of this file alone."""
    assert compose["server"]["ports"] == ["127.0.0.1:8080:9997/tcp"]
    triton = [argument for argument in compose["server"]["command"] if argument.startswith("--triton")]
    assert triton == ["--triton-metrics-host=0.0.0.0"]
    assert {name for name, service in compose.items() if not service.get("profiles")} == {"server"}


def test_composes_profile_of_monitoring_mounts_what_is_there(compose: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        service = compose[name]
        assert service["profiles"] == ["monitoring"]
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
        mounted = [Path(volume.split(":")[0]) for volume in service["volumes"] if volume.startswith("/")]
        assert mounted
        assert all(path.exists() for path in mounted)


def test_compose_uses_flags_that_exist(compose: dict[str, Any]) -> None:
    assert compose["server"]["command"][0] == "serve"
    assert flags_in(compose["server"]["command"]) <= serve_flags()
    assert compose["server"]["environment"]["INTERNVIDEO_REQUEST_TIMEOUT"] == "900"


def test_compose_says_what_is_missing() -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose: apt install docker-compose")
    environment = {name: value for name, value in os.environ.items() if name not in ("CHECKPOINT", "ENGINE")}
    command = [program, "-f", str(DOCKER / "compose.yaml"), "config"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode != 0
    assert "the directory of the model" in result.stderr


def test_images_start_with_flags_that_exist() -> None:
    [server] = [arguments for name, arguments in instructions(SERVER) if name == "CMD"]
    assert set(re.findall(r"--[a-z-]+", server)) <= serve_flags()
