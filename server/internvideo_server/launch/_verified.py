"""Cached exports that are whole: a list of sizes and hashes is made with each, and looked at before it is used."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = ".manifest.json"
_SEEN = ".seen.json"


def seal(directory: Path) -> None:
    """Write the manifest of a new export, and everything of it to the disk.

    Raises:
        OSError: The disk is full, say.
    """
    files = {name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(directory).items()}
    _write(directory / MANIFEST, files)
    _write(directory / _SEEN, _stamps(directory))
    for path in (*_files(directory).values(), directory / MANIFEST, *(p for p in directory.rglob("*") if p.is_dir()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def damage(directory: Path) -> str | None:
    """What is wrong with an export; None where it is whole.

    Sizes are compared each time, hashes where a file was touched since they last were.
    """
    manifest = _read(directory / MANIFEST)
    if manifest is None:
        return f"{MANIFEST} is missing"
    files = _files(directory)
    for name, wanted in manifest.items():
        if name not in files:
            return f"{name} is missing"
        if (size := files[name].stat().st_size) != wanted["size"]:
            return f"{name} has {size} bytes instead of {wanted['size']}"
    stamps = _stamps(directory)
    if _read(directory / _SEEN) != stamps:
        for name, wanted in manifest.items():
            if _sha256(files[name]) != wanted["sha256"]:
                return f"{name} has other content"
        _write(directory / _SEEN, stamps)
    return None


def _files(directory: Path) -> dict[str, Path]:
    found = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in (MANIFEST, _SEEN)}


def _stamps(directory: Path) -> dict[str, list[int]]:
    status = {name: path.stat() for name, path in _files(directory).items()}
    return {name: [each.st_ino, each.st_size, each.st_mtime_ns] for name, each in status.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1))
