"""Hands bytes on in one of several ways, and says when it had them."""

import json
import mmap
import os
import socket
import time

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from profiled import Profiler

FRAME_BYTES = 3 * 448 * 448
ROWS_BYTES = 16 * 4096 * 2  # of a frame, bfloat16
MOST = 512
CUDA = torch.cuda.is_available()
DEVICE = os.environ.get("HANDOFF_SENDER", "cuda:0") if CUDA else "cpu"
NOTHING = np.zeros(0, np.uint8)


class TritonPythonModel:
    def initialize(self, args):
        if CUDA:
            torch.cuda.set_device(DEVICE)
        self._profiler = Profiler()
        self._staging = torch.empty(MOST * FRAME_BYTES if CUDA else 1, dtype=torch.uint8, pin_memory=CUDA)
        self._region = torch.empty(MOST * ROWS_BYTES, dtype=torch.uint8, device=DEVICE)
        self._shm = f"/dev/shm/handoff-{os.getppid()}"
        with open(self._shm, "wb+") as file:  # made once, as the old system's
            os.ftruncate(file.fileno(), MOST * ROWS_BYTES)
            self._mapped = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        self._mapped[:] = 0

    def finalize(self):
        os.unlink(self._shm)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        way = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode()
        count = int(pb_utils.get_input_tensor_by_name(request, "FRAMES").as_numpy()[0])
        if way.startswith("profile"):
            copies = self._profiler.start() if way == "profile: start" else self._profiler.stop()
            sent = json.dumps({"way": way, "copies": copies})
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor("THING", NOTHING), pb_utils.Tensor("SENT", np.array([sent.encode()], dtype=object))]
            )
        send = self._frames if way.startswith("frames") else self._rows
        began, thing = send(way, count)
        sent = json.dumps({"way": way, "frames": count, "began": began, "shm": self._shm})
        return pb_utils.InferenceResponse([thing, pb_utils.Tensor("SENT", np.array([sent.encode()], dtype=object))])

    def _frames(self, way, count):
        fd = os.memfd_create("frames")
        for i in range(count):  # as a decoder process does: written, not mapped
            os.pwrite(fd, bytes([i % 251]) * FRAME_BYTES, i * FRAME_BYTES)
        try:
            began = time.monotonic()
            if way.startswith("frames: descriptor"):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                    peer.connect(f"\0handoff-{os.getppid()}")
                    socket.send_fds(peer, [b"frames"], [fd])
                    peer.recv(16)
                return began, pb_utils.Tensor("THING", NOTHING)
            if way == "frames: old method":  # decoded where they are used; nothing to send
                return began, pb_utils.Tensor("THING", NOTHING)
            frames = np.frombuffer(mmap.mmap(fd, count * FRAME_BYTES), np.uint8)
            if way.startswith("frames: Triton"):
                return began, pb_utils.Tensor("THING", frames)
            return began, pb_utils.Tensor.from_dlpack("THING", torch.to_dlpack(self._upload(way, torch.from_numpy(frames))))
        finally:
            os.close(fd)

    def _upload(self, way, host):
        registered = way == "frames: GPU tensor, locked"
        if way == "frames: GPU tensor, pinned":
            host = self._staging[: len(host)].copy_(host)
        elif registered and int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.numel(), 0)):
            raise RuntimeError("cudaHostRegister")
        tensor = host.to(DEVICE, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        if registered:
            torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
        return tensor

    def _rows(self, way, count):
        rows = self._region[: count * ROWS_BYTES]
        rows.copy_((torch.arange(count * 16, device=DEVICE) % 251).to(torch.uint8).repeat_interleave(ROWS_BYTES // 16))
        if CUDA:
            torch.cuda.current_stream().synchronize()
        began = time.monotonic()
        if way == "rows: GPU region":
            return began, pb_utils.Tensor.from_dlpack("THING", torch.to_dlpack(rows))
        if way == "rows: Triton's host tensor":
            return began, pb_utils.Tensor("THING", rows.cpu().numpy())
        self._mapped[: len(rows)] = rows.cpu().numpy()
        return began, pb_utils.Tensor("THING", NOTHING)
