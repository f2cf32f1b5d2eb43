"""Triton model `vit`: frames to rows of the prompt table. The network is in internvideo_server.vision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils

from internvideo_server.cache import LeaseServer, socket_name
from internvideo_server.embeddings import Embedder, NamedFrames
from internvideo_server.errors import invalid
from internvideo_server.limits import EngineLimits
from internvideo_server.regions import RegionPool
from internvideo_server.vision import Quantization, Stopped, VisionModel
from internvideo_server.work import Job, TritonMeter, WorkerPool, parameters


class TritonPythonModel:
    """Several requests share the vision tower; each waits for its rows on a worker thread and sends them."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the vision part of the checkpoint, and make the regions."""
        settings = parameters(args)
        limits = EngineLimits.from_engine_dir(Path(settings["engine_dir"]))
        dtype, device = getattr(torch, settings["dtype"]), torch.device(settings["device"])
        if device.type == "cuda":
            torch.cuda.set_device(device)  # page-locked memory takes a context on the current one
        quantization = Quantization(settings["quantization"])
        model = VisionModel.from_checkpoint(Path(settings["checkpoint_dir"]), device, dtype, quantization)
        if (settings["dtype"], model.hidden_size) != (limits.dtype, limits.hidden_size):
            raise pb_utils.TritonModelException(
                f"vit makes {settings['dtype']} rows of {model.hidden_size}, the engine takes {limits.dtype} rows of "
                f"{limits.hidden_size}: use the engine's dtype (--dtype) and the checkpoint that it was built from"
            )
        meter, count, queue = TritonMeter("vit"), int(settings["cuda_region_count"]), int(settings["max_queue_size"])
        size = int(settings["cuda_region_bytes"]) or limits.table_bytes
        regions = RegionPool(count, size, settings["cuda_region_prefix"], model.device, meter)
        workers = 2 * count  # a request whose embeddings are here needs no region, and must not wait behind those that do
        self._embedder = Embedder(
            model, regions, int(settings["embedding_cache_bytes"]), meter, workers + queue if queue else math.inf
        )
        self._leases = LeaseServer(self._embedder.leases, self._embedder.parcels, socket_name())
        self._pool = WorkerPool(
            "vit",
            self._embed,
            workers=workers,
            max_queue_size=queue,
            meter=meter,
            on_stop=self._embedder.stop,
            on_refused=lambda job: self._embedder.drop(_ticket(job)),
        )

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; they are answered later."""
        self._pool.execute(requests)

    def finalize(self) -> None:
        """End the work under way."""
        self._leases.close()
        self._pool.close()
        self._embedder.close()

    def _embed(self, job: Job) -> list[Any]:
        tensor = pb_utils.get_input_tensor_by_name(job.request, "frames")
        if tensor is None:
            raise invalid("frames is missing", "frames")
        frames = torch.from_dlpack(tensor.to_dlpack()).squeeze(0)  # [T, 3, 448, 448] uint8
        try:
            table = self._embedder.table(frames, _media(job), _ticket(job), job.budget)
        except Stopped:
            job.check("in the vision tower")  # says which of the two it was
            raise
        job.until_answered.callback(table.release)
        return [pb_utils.Tensor.from_dlpack("prompt_embedding_table", torch.to_dlpack(table.rows.unsqueeze(0)))]


def _ticket(job: Job) -> int:
    return int(_input(job, "lease", 0).item())


def _media(job: Job) -> list[NamedFrames]:
    keys, counts = _input(job, "frame_keys", []), _input(job, "frame_counts", [])  # [1, M, 32], [1, M]
    return [
        NamedFrames(bytes(key.tobytes()), int(count)) for key, count in zip(keys.reshape(-1, 32), counts.reshape(-1), strict=True)
    ]


def _input(job: Job, name: str, default: Any) -> npt.NDArray[Any]:
    tensor = pb_utils.get_input_tensor_by_name(job.request, name)
    return np.array(default) if tensor is None else tensor.as_numpy()
