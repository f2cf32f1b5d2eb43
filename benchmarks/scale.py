"""On paper: what routing makes of 1 to 1,000 replicas, by a simulation whose costs are read from the measured results.

    python benchmarks/scale.py                          # then make figures
    python benchmarks/scale.py --replicas 3,10 --out /tmp/trial

Nothing here was run on so many hosts: it says what the policies do with what one replica was measured to cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.cluster import POLICIES, SLOTS, TOKENS, Costs, Load, Simulation
from benchmarks.report import RESULTS, read, surroundings, table, write
from internvideo_server.settings import ServeSettings

FRAMES = 80
_FRAME_BYTES = 3 * 448 * 448
_TABLE_BYTES = FRAMES * 16 * 4096 * 2  # bfloat16
_KV_BYTES = 1894 * 32 * 2 * 8 * 128 * 2  # of a prompt: layers, keys and values, heads, width, bfloat16
_KV_MEMORY = 73e9  # of an H200, beside weights and tower
SHORT = ("round robin", "consistent", "200 %")
#: Seconds that are looked at, by the number of replicas.
_SECONDS = {1: 1500.0, 3: 1200.0, 10: 900.0, 100: 300.0}


def result(name: str, **wanted: Any) -> dict[str, Any]:
    """The row of a benchmark's last result that has these values.

    Raises:
        LookupError: It was not measured.
    """
    rows = (read(name) or {"rows": []})["rows"]
    found: dict[str, Any] | None = next((row for row in rows if wanted.items() <= row.items()), None)
    if found is None:
        raise LookupError(f"benchmarks/results/{name}.json has no row with {wanted}")
    return found


def measured_costs(embedding_mb: int) -> Costs:
    """Of one H200 and 16 cores; ``embedding_mb``: the cache of embeddings.

    Decoding overlaps with the tower, so what counts of it is what it adds to the first token. What a video costs beside tower
    and prompt, where 16 streams share the GPU, is its steps. So a replica that finds nothing answers as soon, and as many a
    second, as was measured.
    """
    alone, together = (result("end_to_end_vllm", method="server", frames=FRAMES, streams=streams) for streams in (1, SLOTS))
    tower = result("vision", method="server", frames=FRAMES)["ms in a row"] / 1e3
    prefill = result("engine_vllm", turn="first", streams=1)["first token s"]
    return Costs(
        decode=alone["first token s"] - tower - prefill,
        tower=tower,
        prefill=prefill,
        warm_prefill=alone["second turn s"],
        step=(1 / together["videos/s"] - tower - prefill) * SLOTS / TOKENS,
        frames_kept=(ServeSettings().frame_cache_mb << 20) // (FRAMES * _FRAME_BYTES),
        embeddings_kept=(embedding_mb << 20) // _TABLE_BYTES,
        kv_kept=int(_KV_MEMORY // _KV_BYTES),
    )


def compare(replicas: list[int], policies: tuple[str, ...], costs: Costs, seconds: float, **load: Any) -> list[dict[str, Any]]:
    """A row for each number of replicas and policy."""
    rows = []
    for count in replicas:
        asked = Load(seconds=seconds or _SECONDS.get(count, 120.0), **load)
        for policy in _of(count, policies):
            rows.append({"replicas": count, "policy": policy, **Simulation(count, policy, costs, asked).run()})
            sys.stderr.write(f"{table(rows[-1:])[-1]}\n")
    return rows


def _of(count: int, policies: tuple[str, ...]) -> tuple[str, ...]:
    """One replica needs no choice; with a thousand each policy takes minutes."""
    return policies[:1] if count == 1 else tuple(each for each in policies if each in SHORT) if count > 100 else policies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", default="1,3,10,100,1000", help="how many, with commas between")
    parser.add_argument("--seconds", type=float, default=0.0, help="simulated time of each run (default: by the replicas)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    machine = surroundings()
    counts = [int(each) for each in options.replicas.split(",")]
    two, one = measured_costs(2048), measured_costs(1024)
    rows = [{"load": "popular videos", **row} for row in compare(counts, POLICIES, two, options.seconds)]
    several = [count for count in counts if 1 < count <= 100]
    for name, costs, load in (
        ("every video is private, 2 GiB of embeddings", two, {"private": 1.0}),
        ("every video is private, 1 GiB", one, {"private": 1.0}),
        ("a third asks about one video", two, {"hot": 1 / 3}),
    ):
        rows += [{"load": name, **row} for row in compare(several, SHORT, costs, options.seconds, **load)]
    told = (
        f"decode {two.decode * 1e3:.0f} ms, tower {two.tower * 1e3:.0f}, prefill {two.prefill * 1e3:.0f} "
        f"(warm {two.warm_prefill * 1e3:.0f}), step {two.step * 1e3:.1f}; {two.cold * 1e3:.0f} ms of a GPU for a cold answer"
    )
    notes = (
        f"Simulated, on nothing but a CPU. Costs from benchmarks/results: {told}. 70 % of the load that replicas bear which "
        f"find nothing; popularity by Zipf 1.0; one replica dies, one joins."
    )
    for path in write(str(options.out.resolve() / "scale"), machine, rows, notes):
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
