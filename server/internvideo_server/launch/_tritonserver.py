"""Find tritonserver, and check that this host can run its Python models."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from ._errors import LaunchError

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver and what its Python models need."""

    binary: Path
    backends: Path  # the server's own backend directory
    python_stub: Path  # the stub for the Python of the models
    libraries: tuple[Path, ...]  # to be put on LD_LIBRARY_PATH

    @property
    def has_tensorrt_llm(self) -> bool:
        """Whether NVIDIA's C++ backend of that name is here (the NGC container ``*-trtllm-python-py3``)."""
        return (self.backends / "tensorrtllm" / "libtriton_tensorrtllm.so").exists()

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment to start it in: ``base`` with this interpreter's ``python3`` and libraries first."""
        environment = dict(base)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)])
        libraries = [str(path) for path in self.libraries] + [base.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        return environment


def find_tritonserver(environ: Mapping[str, str] = os.environ) -> TritonServer:
    """``$TRITONSERVER``, then PATH, then /opt/tritonserver, then the one inside the nvidia-pytriton wheel.

    Raises:
        LaunchError: There is none, or it cannot run models with this Python.
    """
    given = environ.get("TRITONSERVER")
    if given and not (Path(given).is_file() and os.access(given, os.X_OK)):
        raise LaunchError(f"$TRITONSERVER is {given}, which is not an executable file")
    installed = (
        given or shutil.which("tritonserver", path=environ.get("PATH")) or shutil.which("/opt/tritonserver/bin/tritonserver")
    )
    wheel = _wheel_root()
    if installed and not (wheel and Path(installed).resolve().is_relative_to(wheel)):
        return _installed_server(Path(installed).resolve())
    if wheel:
        return _wheel_server(wheel)
    raise LaunchError(
        "no tritonserver found ($TRITONSERVER, PATH, /opt/tritonserver/bin): install the embedded one with "
        "`pip install nvidia-pytriton==0.7.0`, or run inside NVIDIA's Triton container"
    )


def _wheel_root() -> Path | None:
    """``pytriton/tritonserver`` of the wheel, without importing pytriton (its import starts looking around the host)."""
    spec = util.find_spec("pytriton")
    for location in (spec and spec.submodule_search_locations) or ():
        if (root := Path(location).resolve() / "tritonserver").is_dir():
            return root
    return None


def _installed_server(binary: Path) -> TritonServer:
    """Of a container or a build from source: PREFIX/bin, PREFIX/backends, PREFIX/lib."""
    backends = binary.parent.parent / "backends"
    stub = backends / "python" / _STUB
    if not stub.is_file():
        raise LaunchError(f"{binary} has no Python backend: {stub} does not exist")
    return TritonServer(binary, backends, stub, (binary.parent.parent / "lib",))


def _wheel_server(root: Path) -> TritonServer:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parent.parent.iterdir() if path.is_dir()))
        raise LaunchError(f"nvidia-pytriton's tritonserver has no stub for Python {version}, only for {known}: use 3.11 or 3.12")
    if not (Path(sys.executable).parent / "python3").exists():
        raise LaunchError(
            f"there is no python3 beside {sys.executable}, and Triton's models take the first on PATH: use a virtual environment"
        )
    for place in (Path(sys.prefix), Path(__file__).parent):
        if not str(place).isascii():
            raise LaunchError(
                f"Triton's Python models cannot run from {place}: the path has characters beyond ASCII. Move the project to "
                "another folder and make its virtual environment there"
            )
    _check_numpy()
    libraries = root.parent.parent / "nvidia_pytriton.libs"
    return TritonServer(root / "bin" / "tritonserver", root / "backends", stub, (libraries, _libpython_directory()))


def _libpython_directory() -> Path:
    """The directory of this interpreter's own shared libpython.

    The stub embeds Python. Left alone, the loader takes any libpython of the minor version that it finds, so the models could
    run the system's interpreter with this environment's packages.
    """
    version = sysconfig.get_config_var("LDVERSION") or sysconfig.get_python_version()
    library = f"libpython{version}.so.1.0"
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for directory in (libdir, libdir / multiarch, Path(sys.base_prefix) / "lib", Path(sys.base_prefix) / "lib" / multiarch):
        if (directory / library).exists():
            return directory
    raise LaunchError(
        f"{library} is missing (looked in {libdir} and {sys.base_prefix}/lib); Triton's Python models need the shared library of "
        f"{sys.base_prefix}'s Python. Debian/Ubuntu: `apt install libpython{sysconfig.get_python_version()}`; "
        "Fedora/RHEL: `dnf install python3-libs`; pyenv: `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install ...`"
    )


def _check_numpy() -> None:
    """Refuse a numpy that is known to break Python models inside Triton 2.51."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise LaunchError("numpy is not installed: `pip install 'numpy>=1.26,<2'` (or `make setup`)") from None
    if int(version.split(".")[0]) >= 2:
        raise LaunchError(
            f"numpy {version} is installed, but Triton 2.51's Python models need numpy 1.x (with 2.x every "
            "BYTES tensor breaks and the stub dies): `pip install 'numpy>=1.26,<2'`"
        )
