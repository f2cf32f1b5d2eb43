"""The vision tower with merging and projector, beside the old system's method.

``python benchmarks/vision.py --baseline --fp8``: uint8 frames on the GPU to rows of the prompt table, at the real size with
random weights, or those of a ``--checkpoint``. `ms` is one video on a GPU that rested before, `ms in a row` one video after
the other: a GPU at its power limit is slower. The old method takes a video at once, in eager bfloat16: ToTensor and
Normalize in float32, attention with its scores in memory, merging with the original's sort. It and FP8 run up to
``--others-up-to`` frames.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812
import typer
from torch import Tensor, nn

from benchmarks.random_vision import moving_frames, random_parts
from benchmarks.report import surroundings, table, write
from benchmarks.vision_accuracy import accuracy
from internvideo_server.checkpoint import Checkpoint
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.vit.vision import Quantization, VisionConfig, VisionModel, load_vision
from internvideo_server.vit.vision.tower import VisionTower, normalise, pixel_shuffle

FRAMES = [8, 16, 64, 80, 128, 256, 512]
Method = Callable[[Tensor], Tensor]
Parts = tuple[VisionConfig, VisionTower, nn.Sequential]


def main(
    frames: Annotated[list[int], typer.Option(help="lengths of videos; repeatable")] = FRAMES,
    baseline: Annotated[bool, typer.Option("--baseline", help="run the old method too")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="run the tower in FP8 too")] = False,
    device: Annotated[str, typer.Option()] = "cuda",
    dtype: Annotated[str, typer.Option()] = "bfloat16",
    checkpoint: Annotated[Path | None, typer.Option(help="its weights; default: random ones of the real size")] = None,
    others_up_to: Annotated[int, typer.Option(help="longest video of FP8 and of the old method, in frames")] = 128,
    repeats: Annotated[int, typer.Option(help="of single videos, fewer if they take long; their median counts")] = 5,
    seconds: Annotated[float, typer.Option(help="of videos in a row")] = 1.0,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md, and NAME_accuracy")] = "",
) -> None:
    """Measure, print the tables, and write them where a name is given."""
    machine = surroundings("torch")
    number = getattr(torch, dtype)
    models: dict[str, VisionModel] = {}
    starts, in_use = {}, []
    for label, quantization in [("server", Quantization.NONE), *[("server, FP8", Quantization.FP8)] * fp8]:
        began = time.perf_counter()
        models[label] = VisionModel(*load(checkpoint, device, number), quantization)
        starts[label] = time.perf_counter() - began
        in_use.append(memory_in_use(device))
    clock = Clock(device, repeats, seconds)
    rate = clock.rate(number)
    typer.echo(f"matrix product 8192^3: {rate[0] / 1e12:.0f} TFLOP/s rested, {rate[1] / 1e12:.0f} in a row")
    typer.echo(f"seconds to load, compile and record: {starts}; GPU memory in use: {in_use}")

    weights = "random weights of the real size" if checkpoint is None else f"weights of {checkpoint.name}"
    exact = VisionModel(*load(checkpoint, device, torch.float32))
    checked = moving_frames(8, seed=5).to(device)
    exactness = [{"model": label, **asdict(accuracy(model, exact, checked))} for label, model in models.items()]
    del exact
    typer.echo("\n".join(table(exactness)))
    if name:
        about = f"{weights}; against float32 on 8 frames; `off` is 1 - cosine, see benchmarks/vision_accuracy.py."
        write(f"{name}_accuracy", machine, exactness, about)

    notes = (
        f"{weights}, {dtype}. `ms`: one video on a rested GPU, median of {repeats}; `ms in a row`: one after the other for "
        f"{seconds:g} s. `share`: of the rate of an 8192^3 product in the same run, {rate[0] / 1e12:.0f} TFLOP/s rested, "
        f"{rate[1] / 1e12:.0f} in a row. `MB`: peak of the allocator above what was held before; a recorded graph holds its "
        "memory from the start. To load, compile and record took "
        f"{', '.join(f'{start:.1f} s ({label})' for label, start in starts.items())}. One GPU was used; with the first model "
        f"loaded {in_use[0] >> 20} MB of it were in use, CUDA's context included."
    )
    config = next(iter(models.values())).config
    methods: dict[str, Method] = {label: model.embed for label, model in models.items()}
    if baseline:
        methods["old method"] = OldMethod(*load(checkpoint, device, number)).embed
    rows: list[dict[str, Any]] = []
    for count in frames:
        wanted = methods if count <= others_up_to else {"server": methods["server"]}
        rows += measure(clock, wanted, moving_frames(count).to(device), operations(config, count), rate)
        if name:
            write(name, machine, rows, notes)
    typer.echo("\n".join(table(rows)))


def load(checkpoint: Path | None, device: str, dtype: torch.dtype) -> Parts:
    """The modules of the vision path."""
    if checkpoint is None:
        return random_parts(device, dtype)
    opened = Checkpoint.open(checkpoint)
    config = VisionConfig.from_checkpoint(opened)
    return config, *load_vision(opened, config, torch.device(device), dtype)


def memory_in_use(device: str) -> int:
    """Bytes of the GPU that anything holds, 0 without one."""
    if torch.device(device).type != "cuda":
        return 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def measure(
    clock: Clock, methods: dict[str, Method], video: Tensor, work: float, rate: tuple[float, float]
) -> list[dict[str, Any]]:
    """The rows of one video, of which the tower has ``work`` operations."""
    rows: list[dict[str, Any]] = []
    for label, embed in methods.items():
        rested, in_a_row, peak = clock.time(partial(embed, video))
        rows.append(
            {
                "frames": len(video),
                "method": label,
                "ms": rested * 1e3,
                "ms in a row": in_a_row * 1e3,
                "TFLOP/s": work / rested / 1e12,
                "share": work / rested / rate[0],
                "share in a row": work / in_a_row / rate[1],
                "MB": peak >> 20,
            }
        )
    slowest = rows[-1]["ms"]
    return [row | {"times as fast": slowest / row["ms"] if "old method" in methods else "-"} for row in rows]


def operations(config: VisionConfig, frames: int) -> float:
    """Floating-point operations of the products: patch embedding, layers, projector."""
    tokens, size = 1 + config.patches, config.hidden_size
    layer = tokens * size * (4 * size + 2 * config.mlp_size) + 2 * tokens**2 * size
    patches = config.patches * 3 * config.patch_size**2 * size
    projector = TOKENS_PER_FRAME * config.llm_hidden_size * (config.shuffled_size + config.llm_hidden_size)
    return 2.0 * frames * (config.num_layers * layer + patches + projector)


class Clock:
    """Measures work on one device."""

    def __init__(self, device: str, repeats: int, seconds: float) -> None:
        self.device, self.repeats, self.seconds = torch.device(device), repeats, seconds

    def time(self, run: Callable[[], object]) -> tuple[float, float, int]:
        """Seconds of a run after a rest, of one in a row, and the peak of memory in bytes above what is held."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device) if cuda else 0
        self._once(run)
        peak = torch.cuda.max_memory_allocated(self.device) - held if cuda else 0
        rested: list[float] = []
        while not rested or (len(rested) < self.repeats and sum(rested) < self.seconds):
            time.sleep(0.15)
            rested.append(self._once(run))
        began, runs = time.perf_counter(), 0
        while runs == 0 or time.perf_counter() - began < self.seconds:
            self._once(run)
            runs += 1
        return statistics.median(rested), (time.perf_counter() - began) / runs, peak

    def rate(self, dtype: torch.dtype) -> tuple[float, float]:
        """Operations a second of a large matrix product: rested, and in a row."""
        size, products = (8192, 50) if self.device.type == "cuda" else (512, 1)
        a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        rested, in_a_row, _ = self.time(lambda: [a @ b for _ in range(products)])
        work = 2.0 * size**3 * products
        return work / rested, work / in_a_row

    def _once(self, run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began


class OldMethod:
    """What the system before this one ran."""

    def __init__(self, config: VisionConfig, tower: VisionTower, projector: nn.Sequential) -> None:
        self.config, self.tower, self.projector = config, tower, projector

    @torch.inference_mode()
    def embed(self, frames: Tensor) -> Tensor:
        """uint8 [T, 3, 448, 448] to [16 T, hidden]."""
        x = self.tower.embeddings(normalise(frames).to(self.tower.embeddings.class_embedding.dtype))
        layers: Any = self.tower.encoder.layers
        for layer in layers:
            x = x + self._attention(layer.attn, layer.norm1(x)) * layer.ls1
            x = x + layer.mlp(layer.norm2(x)) * layer.ls2
        x = pixel_shuffle(x, self.config.patches_per_side)
        x = x.reshape(-1, FRAMES_PER_GROUP * self.config.tokens_per_frame, self.config.shuffled_size)
        rows: Tensor = self.projector(self._merge(x)).flatten(0, 1)
        return rows

    @staticmethod
    def _attention(attention: Any, x: Tensor) -> Tensor:
        q, k, v = attention.qkv(x).view(*x.shape[:2], 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        projected: Tensor = attention.proj((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
        return projected

    def _merge(self, x: Tensor) -> Tensor:
        sizes = torch.ones_like(x[:, :, :1])
        while x.shape[1] > FRAMES_PER_GROUP * TOKENS_PER_FRAME:
            metric = F.normalize(x.view(*x.shape[:2], self.config.merge_heads, -1).mean(2), dim=2)
            best, choice = (metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)).max(2)
            order = best.argsort(1, descending=True)[..., None]
            into = choice[..., None].gather(1, order)
            x = x * sizes
            even, odd = x[:, 0::2].gather(1, order.expand(-1, -1, x.shape[2])), x[:, 1::2]
            x = odd.scatter_reduce(1, into.expand_as(even), even, "sum")
            sizes = sizes[:, 1::2].scatter_reduce(1, into, sizes[:, 0::2].gather(1, order), "sum")
            x = x / sizes
        return x


if __name__ == "__main__":
    typer.run(main)
