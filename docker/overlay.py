"""Add this project to a container image without changing one package of it.

Makes a virtual environment that lies over the image's Python: its own packages come first, the image's follow. What the image
lacks, or has in too old a version, is installed into the overlay alone; the packages named in ``KEPT`` must be the image's own,
because NVIDIA's libraries are built for them, and pip is made to fail rather than to choose another version. What is installed
has the version and a hash of the lock.

Standard library only: it runs with the image's bare Python, at build time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

KEPT = ("torch", "numpy", "transformers", "tensorrt", "tensorrt_llm", "vllm", "triton", "mpi4py", "nvidia-modelopt")

LAUNCHER = """#!{python}
from internvideo_client.cli import main

main()
"""


def make_overlay(target: Path, requirements: Path, lock: Path, sources: list[Path]) -> None:
    """Make the environment ``target``.

    Args:
        target: A directory that does not exist.
        requirements: What the project needs beside `KEPT`.
        lock: One version with its hashes of each that may be missing (`make lock`).
        sources: Directories to import this project's packages from.
    """
    # The packages of the Python that runs this; the image's own environment may itself lie over the system's.
    under = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    venv.create(target, with_pip=False, symlinks=True)
    python = target / "bin" / "python3"
    # addsitedir, so that .pth files of the image's packages are honoured, too.
    lines = [f"import site; site.addsitedir({path!r})" for path in under]
    [site] = (target / "lib").glob("python*/site-packages")
    (site / "zz_image.pth").write_text("\n".join([*map(str, sources), *lines]) + "\n")

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name in KEPT if (version := installed(name)))
        constraints.flush()
        command = [str(python), "-m", "pip", "install", "--no-cache-dir", "--no-warn-script-location"]
        wanted = ["-c", constraints.name, "-r", str(requirements)]
        if names := missing([*command, *wanted]):
            install([*command, "--no-deps", "--require-hashes"], names, locked(lock))
            if names := missing([*command, *wanted]):
                sys.exit(f"error: with the versions of {lock.name}, pip still wants others of {', '.join(names)}: make lock")
    own = sorted({d.metadata["Name"] for d in metadata.distributions(path=[str(site)])})
    if replaced := set(map(normal, own)) & set(map(normal, KEPT)):
        sys.exit(f"error: pip put {', '.join(sorted(replaced))} over the image's own")
    launcher = target / "bin" / "internvideo"
    launcher.write_text(LAUNCHER.format(python=python))
    launcher.chmod(0o755)
    sys.stdout.write(f"over the image's Python: {', '.join(own) or 'nothing'}\n")


def missing(command: list[str]) -> list[str]:
    """What pip would install: the image lacks it, or has it in a version that does not fit."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        subprocess.run([*command, "--dry-run", "--report", report.name], check=True)
        return sorted(normal(each["metadata"]["name"]) for each in json.load(report)["install"])


def locked(lock: Path) -> dict[str, str]:
    """Name -> its requirement with all hashes."""
    entries = lock.read_text().replace("\\\n", " ").splitlines()
    return {normal(entry.partition("==")[0]): entry for entry in entries if "==" in entry}


def install(command: list[str], names: list[str], entries: dict[str, str]) -> None:
    """These alone, by their hashes."""
    if unknown := [name for name in names if name not in entries]:
        sys.exit(f"error: the image lacks {', '.join(unknown)}, of which no version is locked: make lock")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as chosen:
        chosen.writelines(f"{entries[name]}\n" for name in names)
        chosen.flush()
        subprocess.run([*command, "-r", chosen.name], check=True)


def installed(name: str) -> str | None:
    """The image's version of a package, None where it has none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return name.strip().lower().replace("_", "-")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", type=Path, help="environment to make")
    parser.add_argument("--requirements", type=Path, required=True, help="requirements file")
    parser.add_argument("--lock", type=Path, required=True, help="versions and hashes of what may be installed")
    parser.add_argument("--source", type=Path, action="append", default=[], help="directory to import from (repeatable)")
    arguments = parser.parse_args()
    make_overlay(arguments.target.absolute(), arguments.requirements, arguments.lock, arguments.source)


if __name__ == "__main__":
    main()
