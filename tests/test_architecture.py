"""The house keeps its floors: imports go downwards, and a module with an underscore is its own package's alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"internvideo_server": ROOT / "server/internvideo_server", "internvideo_client": ROOT / "client/internvideo_client"}
GROUND = {
    *("checkpoint", "checkpoint_layout", "context", "deadline", "engine_directory", "errors", "frame_buffer"),
    *("gpus", "limits", "memory", "metrics", "project", "report", "routing"),
}
#: Each package may use those after it, as in docs/architecture.md (read from the bottom), and the ground floor.
FLOORS = (
    {"launch", "doctor"},
    {"preprocessing", "vit", "engine"},
    {"export", "handoff", "triton_model", "sandbox"},
    {"cache", "settings"},
)
#: The adapter's rooms likewise; its files beside them put them together.
ADAPTER_FLOORS = ({"routes"}, {"generation"}, {"http", "openapi"})


def _sources() -> Iterator[tuple[Path, str]]:
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield path, ".".join([name, *path.relative_to(folder).with_suffix("").parts])
    for folder in ("build_scripts", "benchmarks", "model_repository", "server/backends"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _floor(room: str, floors: tuple[set[str], ...] = FLOORS) -> int:
    return next(floor for floor, rooms in enumerate(floors) if room in rooms)


@pytest.mark.parametrize(("path", "module"), list(_sources()), ids=lambda value: value if isinstance(value, str) else "")
def test_private_modules_are_used_by_their_own_package_alone(path: Path, module: str) -> None:
    for name in _imported(path):
        parts = name.split(".")
        private = next((at for at, part in enumerate(parts[:-1]) if part.startswith("_") and not part.startswith("__")), None)
        if private is None or parts[0] == "__future__":
            continue
        owner = ".".join(parts[:private])
        assert parts[0] not in {*PACKAGES, "build_scripts", "benchmarks"} or module.startswith(owner + "."), (
            f"{module} uses {name}"
        )


@pytest.mark.parametrize(("path", "module"), [(path, module) for path, module in _sources() if "internvideo_server" in module])
def test_imports_go_downwards(path: Path, module: str) -> None:
    parts = module.split(".")
    room = parts[parts.index("internvideo_server") + 1] if parts[0] == "internvideo_server" else None
    for name in _imported(path):
        if not name.startswith("internvideo_server."):
            continue
        other = name.split(".")[1]
        if room is None or other == room or other in GROUND or other.startswith("__"):
            continue
        assert room not in GROUND, f"{module} is of the ground floor and uses {name}"
        assert _floor(other) > _floor(room) or {room, other} == {"launch", "doctor"}, f"{module} uses {name}"


@pytest.mark.parametrize("path", sorted((PACKAGES["internvideo_client"] / "adapter").glob("*/*.py")), ids=lambda path: path.stem)
def test_imports_between_the_rooms_of_the_adapter_go_downwards(path: Path) -> None:
    for name in _imported(path):
        room = re.fullmatch(r"internvideo_client\.adapter\.([a-z]+)\..+", name)
        if room and room[1] != path.parent.name:
            assert _floor(room[1], ADAPTER_FLOORS) > _floor(path.parent.name, ADAPTER_FLOORS), f"{path} uses {name}"
