"""Brings bytes to its device in one of several ways, checks them, and answers the milliseconds since the sender had them."""

import json
import mmap
import os
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from profiled import Profiler

FRAME_BYTES = 3 * 448 * 448
ROWS_BYTES = 16 * 4096 * 2  # of a frame, bfloat16
MOST = 512
CHUNK = 16 * FRAME_BYTES
THREADS = 4
CUDA = torch.cuda.is_available()
DEVICE = "cuda:0" if CUDA else "cpu"


class TritonPythonModel:
    def initialize(self, args):
        self._profiler = Profiler()
        self._staging = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=CUDA) for _ in range(2)]
        self._whole = torch.empty(MOST * FRAME_BYTES if CUDA else 1, dtype=torch.uint8, pin_memory=CUDA)
        self._readers = ThreadPoolExecutor(THREADS)
        self._received = queue.SimpleQueue()
        self._shm = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(f"\0handoff-{os.getppid()}")
        self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()
        self._old = torch.zeros(80, 3, 448, 448)  # what ToTensor and Normalize leave
        torch.zeros(1, device=DEVICE)

    def _serve(self):
        while True:
            client, _ = self._socket.accept()
            with client:
                _, fds, _, _ = socket.recv_fds(client, 64, 1)
                self._received.put(fds[0])
                client.send(b"ok")

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        came = time.monotonic()
        sent = json.loads(pb_utils.get_input_tensor_by_name(request, "SENT").as_numpy()[0])
        if sent["way"].startswith("profile"):
            mine = self._profiler.start() if sent["way"] == "profile: start" else self._profiler.stop()
            sums = [sum(each.get(kind, 0.0) for each in (sent["copies"] or {}, mine or {})) for kind in ("DtoH", "HtoD", "PtoP")]
            return pb_utils.InferenceResponse([pb_utils.Tensor("MS", np.array(sums))])
        way, count, began = sent["way"], sent["frames"], sent["began"]
        thing = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, "THING").to_dlpack())
        self._first = 0.0
        if way == "frames: old method":
            got = torch.cat([self._old] * -(-count // 80))[:count]
            began = came = time.monotonic()
            got = got.to(DEVICE).to(torch.bfloat16)
        else:
            got = self._frames(way, count, thing) if way.startswith("frames") else self._rows(way, count, thing, sent["shm"])
        if CUDA:
            torch.cuda.current_stream().synchronize()
        done = time.monotonic()
        if way != "frames: old method":
            self._check(got, count * (1 if way.startswith("frames") else 16))
        del got, thing
        times = [came - began, done - began, self._first - began if self._first else 0.0]
        return pb_utils.InferenceResponse([pb_utils.Tensor("MS", np.array(times) * 1000)])

    def _check(self, got, parts):
        got = got.view(parts, -1)
        if not bool((got[:, ::4099] == (torch.arange(parts, device=got.device) % 251).to(torch.uint8)[:, None]).all()):
            raise RuntimeError("other bytes came than were sent")

    def _rows(self, way, count, thing, shm):
        if way == "rows: old method":
            if self._shm is None:
                with open(shm, "rb+") as file:
                    self._shm = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
            thing = self._shm[: count * ROWS_BYTES]
        return thing.to(DEVICE, copy=True)

    def _frames(self, way, count, thing):
        if not way.startswith("frames: descriptor"):
            if way.endswith("pinned") and not thing.is_cuda:
                thing = self._whole[: len(thing)].copy_(thing) if CUDA else thing
            return thing.to(DEVICE, non_blocking=True)
        fd = self._received.get()
        size = count * FRAME_BYTES
        try:
            if "read" in way:
                return self._read(fd, size, THREADS if way.endswith("threads") else 1)
            mapped = torch.frombuffer(mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), dtype=torch.uint8)
            if way.endswith("pinned") and CUDA:
                return self._whole[:size].copy_(mapped).to(DEVICE, non_blocking=True)
            if way.endswith("locked") and CUDA:
                if int(torch.cuda.cudart().cudaHostRegister(mapped.data_ptr(), size, 0)):
                    raise RuntimeError("cudaHostRegister")
                got = mapped.to(DEVICE, non_blocking=True)
                torch.cuda.current_stream().synchronize()
                torch.cuda.cudart().cudaHostUnregister(mapped.data_ptr())
                return got
            return mapped.to(DEVICE)
        finally:
            os.close(fd)

    def _read(self, fd, size, threads):
        """Through two pinned buffers in turn."""
        got = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        ran = [torch.cuda.Event() if CUDA else None for _ in range(2)]
        for turn, start in enumerate(range(0, size, CHUNK)):
            staging = self._staging[turn % 2][: min(CHUNK, size - start)]
            if CUDA:
                ran[turn % 2].synchronize()
            view, step = memoryview(staging.numpy()), -(-len(staging) // threads)
            parts = [(start + at, [view[at : at + step]]) for at in range(0, len(staging), step)]
            if threads == 1:
                os.preadv(fd, parts[0][1], start)
            else:
                list(self._readers.map(lambda part: os.preadv(fd, part[1], part[0]), parts))
            got[start : start + len(staging)].copy_(staging, non_blocking=True)
            if CUDA:
                ran[turn % 2].record()
            self._first = self._first or time.monotonic()
        return got
