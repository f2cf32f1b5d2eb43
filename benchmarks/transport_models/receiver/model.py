"""Brings frames to the device in one of several ways, checks them, and answers the milliseconds since the sender had them."""

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

FRAME = 3 * 448 * 448
CHUNK = 16
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


class TritonPythonModel:
    def initialize(self, args):
        self._staging = [torch.empty(CHUNK, 3, 448, 448, dtype=torch.uint8, pin_memory=CUDA) for _ in range(2)]
        self._whole = torch.empty(512, 3, 448, 448, dtype=torch.uint8, pin_memory=CUDA) if CUDA else None
        self._warm = torch.zeros(1, device=DEVICE)
        self._received = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(4)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(f"\0transport-{os.getppid()}")
        self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            client, _ = self._socket.accept()
            with client:
                message, fds, _, _ = socket.recv_fds(client, 64, 1)
                count = int(message)
                self._received.put((fds[0], count))
                client.send(b"ok")

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "FRAMES")
        began = float(pb_utils.get_input_tensor_by_name(request, "BEGAN").as_numpy()[0])
        way = pb_utils.get_input_tensor_by_name(request, "SENT_WAY").as_numpy()[0].decode()
        came = time.monotonic()
        first = [0.0]
        if way.startswith("memfd"):
            fd, count = self._received.get()
            if not way.startswith("memfd read"):
                memory = mmap.mmap(fd, count * FRAME, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
                frames = torch.frombuffer(memory, dtype=torch.uint8).view(count, 3, 448, 448)
        else:
            fd, frames = -1, torch.from_dlpack(tensor.to_dlpack())
        if way.startswith("memfd read"):
            frames = torch.empty(0)
            on_device = self._read(fd, count, first, threads=4 if way.endswith("threads") else 1)
        elif frames.is_cuda:
            on_device = frames
        elif way.endswith("chunks"):
            on_device = self._in_chunks(frames, first)
        elif way.endswith("staged"):
            staged = self._whole[: len(frames)] if CUDA else torch.empty_like(frames)
            staged.copy_(frames)
            on_device = staged.to(DEVICE, non_blocking=True)
        elif way.endswith("registered") and CUDA:
            status = torch.cuda.cudart().cudaHostRegister(frames.data_ptr(), frames.numel(), 0)
            if int(status):
                raise RuntimeError(str(status))
            on_device = frames.to(DEVICE, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            torch.cuda.cudart().cudaHostUnregister(frames.data_ptr())
        else:
            on_device = frames.to(DEVICE)
        if CUDA:
            torch.cuda.current_stream().synchronize()
        done = time.monotonic()
        if fd >= 0:
            os.close(fd)
        place = float(frames.is_cuda)
        expected = (torch.arange(len(on_device), device=on_device.device) % 251).to(torch.uint8)
        if not bool((on_device[:, 2, ::64, ::64] == expected[:, None, None]).all()):
            raise RuntimeError("other frames came than were sent")
        del frames, on_device, tensor
        ms = np.array([came - began, done - began, first[0] - began if first[0] else 0.0, place / 1000]) * 1000
        return pb_utils.InferenceResponse([pb_utils.Tensor("MS", ms)])

    def _read(self, fd, count, first, threads):
        """Through two pinned buffers in turn, read from the descriptor without mapping it."""
        on_device = torch.empty(count, 3, 448, 448, dtype=torch.uint8, device=DEVICE)
        free = [torch.cuda.Event() if CUDA else None for _ in range(2)]
        for turn, start in enumerate(range(0, count, CHUNK)):
            n = min(CHUNK, count - start)
            if CUDA:
                free[turn % 2].synchronize()
            staging = self._staging[turn % 2][:n]
            view = memoryview(staging.numpy().reshape(-1))
            if threads == 1:
                os.preadv(fd, [view], start * FRAME)
            else:
                step = -(-n // threads) * FRAME
                views = [[view[at : at + step]] for at in range(0, n * FRAME, step)]
                places = range(start * FRAME, (start + n) * FRAME, step)
                list(self._readers.map(os.preadv, [fd] * len(views), views, places))
            on_device[start : start + n].copy_(staging, non_blocking=True)
            if CUDA:
                free[turn % 2].record()
            first[0] = first[0] or time.monotonic()
        return on_device

    def _in_chunks(self, frames, first):
        """Through two pinned buffers in turn."""
        on_device = torch.empty(frames.shape, dtype=torch.uint8, device=DEVICE)
        free = [torch.cuda.Event() if CUDA else None for _ in range(2)]
        for turn, start in enumerate(range(0, len(frames), CHUNK)):
            part = frames[start : start + CHUNK]
            staging = self._staging[turn % 2][: len(part)]
            if CUDA:
                free[turn % 2].synchronize()
            staging.copy_(part)
            on_device[start : start + len(part)].copy_(staging, non_blocking=True)
            if CUDA:
                free[turn % 2].record()
            first[0] = first[0] or time.monotonic()
        return on_device
