"""What the launcher reads from an engine directory beside the limits: its ranks, and the memory for its prompt tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..limits import EngineLimits
from ._errors import LaunchError

GRAMMAR_FILE = "xgrammar_tokenizer_info.json"

REGION_COUNT = 8  # prompt tables that `vit` makes and hands over at once


def pretrained_config(engine: Path) -> dict[str, Any]:
    """``pretrained_config`` of the engine's config.json, {} where there is none."""
    document = json.loads((engine / "config.json").read_text())
    section = document.get("pretrained_config") if isinstance(document, dict) else None
    return section if isinstance(section, dict) else {}


def world_size(engine: Path) -> int:
    """Ranks of a TensorRT-LLM engine, a process and a GPU each; 1 for the embedded engine.

    Raises:
        LaunchError: config.json and the files disagree.
    """
    ranks = sorted(file.name for file in engine.glob("rank*.engine"))
    if not ranks:
        return 1
    size = int(pretrained_config(engine).get("mapping", {}).get("world_size", 1))
    if ranks != sorted(f"rank{rank}.engine" for rank in range(size)):
        raise LaunchError(
            f"{engine}/config.json says {size} ranks, the directory holds {', '.join(ranks)}: build it anew "
            "(build_scripts/build.py)"
        )
    return size


def cuda_pool_bytes(region_count: int, region_bytes: int) -> int:
    """Triton's pool for tensors between models: each region's table as `vit` sent it, and again as the engine takes it.

    Where it is exhausted Triton hands tables over through host memory: slower, not wrong.
    """
    return max(2 * region_count * region_bytes, 64 << 20)


def prompt_table_bytes(limits: EngineLimits, region_count: int = REGION_COUNT) -> int:
    """All memory for prompt tables where tower and engine share a GPU: regions, Triton's pool, the engine's own for a batch."""
    largest = limits.table_bytes
    return region_count * largest + cuda_pool_bytes(region_count, largest) + limits.max_batch_size * largest
