"""What ``benchmarks/all.py`` runs: each part's program and options, at full size and in the smallest form."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_scripts.checkpoint_sizes import Size

CORES = len(os.sched_getaffinity(0))
DECODE = "decode" if CORES == 2 else f"decode_{CORES}_cores"
LONGEST = 1024  # frames


@dataclass(frozen=True)
class Part:
    """A program; its result has the part's name.

    Attributes:
        name: By which it is chosen.
        program: ``benchmarks/PROGRAM.py``.
        options: Of the program.
        expected_s: At full size on an H200 with 16 cores, the start of servers included; a guess where it never ran.
        slots: Requests at once that the engine directory is set to; 0: the part needs no checkpoint.
        frames: Of one request, likewise.
        gpus: That it needs.
        vllm: Whether it needs vLLM on a GPU.
        on_cpu: Whether it has a form for the CPU: vLLM does not run the tiny model there.
    """

    name: str
    program: str
    options: list[str]
    expected_s: int
    slots: int = 0
    frames: int = 128
    gpus: int = 1
    vllm: bool = False
    on_cpu: bool = True

    @property
    def limit_s(self) -> int:
        """After which it is stopped."""
        return 60 + 2 * self.expected_s

    def lacks(self, gpus: int) -> str:
        """Why it cannot run on a host with so many GPUs; nothing where it can."""
        if self.gpus > gpus > 0:  # without any, two models share the CPU
            return f"needs {self.gpus} GPUs"
        if not (gpus or self.on_cpu):
            return "needs a GPU"
        if self.vllm and gpus and importlib.util.find_spec("vllm") is None:
            return "needs vLLM (make setup-vllm)"
        return ""


@dataclass(frozen=True)
class Form:
    """How the parts are run.

    Attributes:
        size: Of the model; ``tiny``: each part in its smallest form.
        gpu: Whether there is one; without, the device is the CPU and what only GPUs know is left out.
        video: Any MP4.
        work: Holds ``checkpoint``, ``engine`` and ``clips``.
    """

    size: Size
    gpu: bool
    video: Path
    work: Path

    @property
    def full(self) -> bool:
        return self.size == Size.FULL

    def numbers(self, option: str, full: list[int], tiny: list[int]) -> list[str]:
        """An option that is repeated."""
        return [word for number in (full if self.full else tiny) for word in (option, str(number))]

    def parts(self) -> list[Part]:
        """All of them, what says most about the project first."""
        return [*self._alone(), *self._chains(), *self._two_gpus()]

    def _alone(self) -> Iterator[Part]:
        """Parts without the whole chain."""
        checkpoint, engine = self.work / "checkpoint", self.work / "engine"
        few = [] if self.full else ["--repeats", "1"]
        yield Part(DECODE, "decode", [str(self.video), "--baseline", *few], 20)
        vision = ["--baseline", *["--fp8"] * self.gpu, "--repeats", "3" if self.full else "1", "--seconds", "0.4"]
        vision += [] if self.full else ["--checkpoint", str(checkpoint), "--frames", "8"]
        vision += [] if self.gpu else ["--device", "cpu", "--dtype", "float32"]
        yield Part("vision", "vision", vision, 80, slots=0 if self.full else 1)
        handoff = ["--baseline", *["--others"] * self.full, "--repeats", "7" if self.full else "2"]
        yield Part("handoff", "handoff", handoff + self.numbers("--frames", [8, 16, 64, 80, 128, 256, 512], [8]), 60)
        streams = [*self.numbers("--streams", [1, 4, 16, 64], [1, 2]), *self._short]
        for name, options in (("engine_vllm", []), ("engine_vllm_fp8", ["--quantization", "fp8"])):
            yield Part(name, "engine", [str(engine), "--vllm", *options, *streams], 90, 64, vllm=True, on_cpu=False)
        yield Part("engine_embedded", "engine", [str(engine), "--baseline", *streams], 150, 64)

    @property
    def _short(self) -> list[str]:
        return [] if self.full else ["--new-tokens", "8"]

    def _chains(self) -> Iterator[Part]:
        """The whole chain on one GPU."""
        bf16, fp8 = ["llm_engine=vllm"], ["llm_engine=vllm", "llm_quantization=fp8", "vit_quantization=fp8"]
        yield self.chain("end_to_end_vllm", bf16, 260)
        yield self.chain("end_to_end_vllm_fp8", fp8, 260)
        yield self.chain("long", bf16, 150, "off", streams=[1], frames=[16, 80, 128, 256, 512, LONGEST], slots=4)
        yield self._neighbours(bf16)
        yield self.chain("end_to_end_vllm_without_mps", [*bf16, "mps=off"], 120, "off")
        yield self.chain("end_to_end_vllm_fp8_without_mps", [*fp8, "mps=off"], 120, "off")
        yield self.chain("end_to_end_embedded", ["llm_engine=embedded"], 230)
        yield self.chain("end_to_end_old_method", [], 60, "no server", more=["--baseline"])
        caps = {
            "cap_24_gib": ([*bf16, "gpu_memory=24", "cuda_region_count=2"], [80, 256]),
            "cap_24_gib_fp8": ([*fp8, "gpu_memory=24", "cuda_region_count=2"], [80, 256, LONGEST]),
            "cap_16_gib_fp8": ([*fp8, "kv_cache_dtype=fp8", "gpu_memory=16", "cuda_region_count=2"], [80, 128]),
        }
        for name, (settings, frames) in caps.items():
            yield self.chain(name, settings, 120, "off", streams=[1, 4], frames=frames, slots=4)
        peer = [
            str(self.video),
            "--checkpoint",
            str(self.work / "checkpoint"),
            "--engine",
            str(self.work / "engine"),
            *self._short,
        ]
        peer += self.numbers("--num-frames", [32, 80], [4]) + self.numbers("--streams", [1, 4, 16], [1, 2])
        peer += [] if self.full else ["--repeats", "1", "--vllm=--max-model-len=4096", "--vllm=--enforce-eager"]
        tuned = ["--vllm=--api-server-count=4", "--vllm=--quantization=fp8"] if self.gpu else []
        yield Part("peer", "peer", peer, 340, 4, vllm=True, on_cpu=False)
        yield Part("peer_tuned", "peer", peer + tuned, 290, 4, vllm=True, on_cpu=False)

    def _neighbours(self, settings: list[str]) -> Part:
        """Others beside long videos."""
        options = [
            str(self.video),
            "--checkpoint",
            str(self.work / "checkpoint"),
            "--engine",
            str(self.work / "engine"),
            *self._short,
        ]
        options += self.numbers("--num-frames", [0, 512, LONGEST], [0, 24]) + (
            [] if self.full else ["--videos", "1", "--seconds", "1"]
        )
        most = LONGEST if self.full else 128
        return Part("neighbours", "neighbours", [*options, *self._served(settings, most)], 130, 16, most, vllm=True)

    def _served(self, settings: list[str], most: int) -> list[str]:
        """Settings of the server, NAME=VALUE; ``most``: frames of a request."""
        served = [*settings, "decode_workers=8", f"max_frames={most}"] if self.gpu else [f"max_frames={most}", "device=cpu"]
        return [word for setting in served for word in ("--serve", setting)]

    def _two_gpus(self) -> Iterator[Part]:
        """Where a second GPU goes."""
        vllm, streams = "llm_engine=vllm", [1, 16, 32]
        yield self.chain("two_gpus_tower", [vllm, "vit_device=cuda:1"], 150, "off", streams=streams, gpus=2)
        yield self.chain("two_gpus_replicas", [vllm], 220, "off", streams=streams, gpus=2, more=["--replicas", "2"])
        yield self.chain("two_gpus_tensor_parallel", [vllm, "tensor_parallel_size=2"], 180, "off", streams=streams, gpus=2)
        sender = ["--sender-gpu", "1"] if self.gpu else []
        yield Part("two_gpus_handoff", "handoff", [*sender, "--repeats", "3", "--frames", "80" if self.full else "8"], 40, gpus=2)

    def chain(
        self,
        name: str,
        settings: list[str],
        expected_s: int,
        caches: str = "both",
        streams: list[int] | None = None,
        frames: list[int] | None = None,
        slots: int = 64,
        gpus: int = 1,
        more: list[str] | None = None,
    ) -> Part:
        """A run of end_to_end.py; ``settings``: of the server, NAME=VALUE."""
        frames = frames or [80]
        options = [str(self.video), "--checkpoint", str(self.work / "checkpoint"), "--engine", str(self.work / "engine")]
        options += [
            "--videos",
            str(self.work / "clips"),
            "--caches",
            caches,
            *self._short,
            "--repeats",
            "3" if self.full else "1",
            *(more or []),
        ]
        options += self.numbers("--streams", streams or [1, 4, 16, 64], [1, 2][: len(streams or [1, 2])])
        options += self.numbers("--num-frames", frames, [8, 16][: len(frames)])
        most = max(frames) if self.full else 128
        options += self._served(settings, most)
        vllm = "llm_engine=vllm" in settings
        return Part(name, "end_to_end", options, expected_s, slots if self.full else 4, most, gpus, vllm)
