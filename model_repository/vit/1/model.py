"""Triton model `vit`: frames to rows of the prompt table. The network is in internvideo_server.vit.vision."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from internvideo_server.errors import invalid
from internvideo_server.handoff import HandoffServer
from internvideo_server.limits import EngineLimits
from internvideo_server.memory import EMBEDDING_CACHE
from internvideo_server.report import Report
from internvideo_server.settings import VitSettings, from_parameters
from internvideo_server.triton_model import Job, TritonMeter, WorkerPool, keep_loaded, parameters, prepare_process
from internvideo_server.vit.embedder import Embedder, NamedFrames
from internvideo_server.vit.table_buffers import RegionPool
from internvideo_server.vit.vision import Quantization, VisionModel


class TritonPythonModel:
    """Several requests share the vision tower; each waits for its rows on a worker thread and sends them."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the vision part of the checkpoint, and make the regions."""
        prepare_process()
        os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")  # under MPS the engine's kernels go first; before CUDA is touched
        settings = from_parameters(VitSettings, parameters(args))
        limits = EngineLimits.from_engine_dir(settings.engine_dir)
        dtype, device = getattr(torch, settings.dtype), torch.device(settings.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # page-locked memory takes a context on the current one
        quantization = Quantization(settings.vit_quantization)
        model = VisionModel.from_checkpoint(settings.checkpoint_dir, device, dtype, quantization)
        if (settings.dtype, model.hidden_size) != (limits.dtype, limits.hidden_size):
            raise pb_utils.TritonModelException(
                f"vit makes {settings.dtype} rows of {model.hidden_size}, the engine takes {limits.dtype} rows of "
                f"{limits.hidden_size}: use the engine's dtype (--dtype) and the checkpoint that it was built from"
            )
        meter, count, queue = TritonMeter("vit"), settings.cuda_region_count, settings.max_queue_size
        size = settings.region_bytes(limits.table_bytes)
        regions = RegionPool(count, size, settings.cuda_region_prefix, model.device, meter)
        workers = 2 * count  # a request whose embeddings are here needs no region, and must not wait behind those that do
        cache = EMBEDDING_CACHE if settings.embedding_cache_mb is None else settings.embedding_cache_mb << 20
        self._embedder = Embedder(model, regions, cache, meter, workers + queue)
        self._handoff = HandoffServer(self._embedder.reservations, settings.handoff_id)
        self._pool = WorkerPool(
            "vit",
            self._embed,
            workers=workers,
            max_queue_size=queue,
            meter=meter,
            on_stop=self._embedder.reservations.cancel,
            on_refused=self._refused,
            report=_report,
        )
        keep_loaded()

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; they are answered later."""
        self._pool.execute(requests)

    def finalize(self) -> None:
        """End the work under way."""
        self._handoff.close()
        self._pool.close()
        self._embedder.close()

    def _refused(self, job: Job) -> None:
        self._embedder.reservations.claim(_reservation(job))

    def _embed(self, job: Job) -> list[Any]:
        tensor = pb_utils.get_input_tensor_by_name(job.request, "frames")
        if tensor is None:
            raise invalid("frames is missing", "frames")
        frames = from_dlpack(tensor.to_dlpack()).squeeze(0)  # [T, 3, 448, 448] uint8
        media = _media(job)
        table = self._embedder.table(frames, media, _reservation(job), job.deadline)
        endings = (table.endings.get(medium.key) for medium in media)
        job.notes["decoding"] = [ending and (ending.damaged_frames, ending.seconds) for ending in endings]
        job.until_answered.callback(table.release)
        return [pb_utils.Tensor.from_dlpack("prompt_embedding_table", to_dlpack(table.rows.unsqueeze(0)))]


def _report(job: Job) -> str:
    given = _input(job, "report", b"{}").item()
    try:
        report = Report.from_json(given)
    except ValueError:  # of a client that calls `vit` alone
        report = Report()
    return report.with_decoding(job.notes.get("decoding", [])).with_vit(job.account()).to_json().decode()


def _reservation(job: Job) -> int:
    return int(_input(job, "reservation", 0).item())


def _media(job: Job) -> list[NamedFrames]:
    keys, counts = _input(job, "frame_keys", []), _input(job, "frame_counts", [])  # [1, M, 32], [1, M]
    return [
        NamedFrames(bytes(key.tobytes()), int(count)) for key, count in zip(keys.reshape(-1, 32), counts.reshape(-1), strict=True)
    ]


def _input(job: Job, name: str, default: Any) -> npt.NDArray[Any]:
    tensor = pb_utils.get_input_tensor_by_name(job.request, name)
    return np.array(default) if tensor is None else tensor.as_numpy()
