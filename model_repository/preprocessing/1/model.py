"""Triton model `preprocessing`: chat messages to frames and token ids. The work is done in internvideo_server.preprocessing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils

from internvideo_server.cache import LeaseClient, socket_name
from internvideo_server.chat import ChatTokenizer
from internvideo_server.errors import invalid
from internvideo_server.frames import FrameStore
from internvideo_server.limits import EngineLimits
from internvideo_server.media import MediaPolicy
from internvideo_server.preprocessing import Preprocessor, word_list
from internvideo_server.video import DecodeLimits, FrameDecoder, ReaderName
from internvideo_server.work import Job, TritonMeter, WorkerPool, parameters


class TritonPythonModel:
    """Prepares several requests at once, each on a worker thread with a decoder process."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Read the limits and the tokenizer, start the decoder processes."""
        settings = parameters(args)
        roots = tuple(Path(root) for root in settings["allowed_local_media_path"].split(os.pathsep) if root)
        workers, max_frames = int(settings["decode_workers"]), int(settings["max_frames"])
        self._tokenizer = ChatTokenizer.from_file(Path(settings["tokenizer_path"]))
        decoding = DecodeLimits(int(settings["num_frames"]), max_frames, reader=cast(ReaderName, settings["video_reader"]))
        self._decoder = FrameDecoder(workers, decoding)
        meter = TritonMeter("preprocessing")
        self._prepare = Preprocessor(
            self._tokenizer,
            EngineLimits.from_engine_dir(Path(settings["engine_dir"])),
            MediaPolicy(roots),
            FrameStore(self._decoder, int(settings["frame_cache_bytes"]), meter),
            max_frames,
            LeaseClient(socket_name()),
            meter,
        )
        # Twice the decoders: while some decode, others fetch.
        self._pool = WorkerPool(
            "preprocessing",
            self._answer,
            workers=2 * workers,
            max_queue_size=int(settings["max_queue_size"]),
            timeout_s=float(settings["request_timeout_s"]),
            meter=meter,
        )

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; they are answered later."""
        self._pool.execute(requests)

    def finalize(self) -> None:
        """End the work under way and the decoder processes."""
        self._decoder.close()
        self._pool.close()

    def _answer(self, job: Job) -> list[Any]:
        messages = pb_utils.get_input_tensor_by_name(job.request, "messages")
        output_len = pb_utils.get_input_tensor_by_name(job.request, "request_output_len")
        video = pb_utils.get_input_tensor_by_name(job.request, "video_bytes")
        if messages is None or output_len is None:
            raise invalid("messages and request_output_len are needed", "messages")
        prepared = self._prepare(
            messages.as_numpy().item(),
            int(output_len.as_numpy().item()),
            None if video is None else video.as_numpy().reshape(-1),
            job.budget,
            job.request_id,
        )
        ids, token_id = prepared.prompt.input_ids, self._tokenizer.token_id
        # InternVL2.5's template ends an answer with <|im_end|>; the other control tokens that can follow end it too.
        outputs = {
            "frames": prepared.frames,
            "frame_keys": np.array([list(m.key) for m in prepared.media], np.uint8).reshape(-1, 32),
            "frame_counts": np.array([m.sent for m in prepared.media], np.int32),
            "lease": np.array([prepared.ticket], np.uint64),
            "deadline": np.array([job.deadline], np.float64),
            "input_ids": ids,
            "input_lengths": np.array([len(ids)], np.int32),
            "output_len": np.array([prepared.max_new_tokens], np.int32),
            "prompt_table_extra_ids": prepared.prompt.extra_ids,
            "end_id": np.array([token_id("<|im_end|>")], np.int32),
            "pad_id": np.array([token_id("</s>")], np.int32),
            "stop_words_list": word_list([[token_id("</s>")], [token_id("<|im_start|>")]]),
        }
        return [pb_utils.Tensor(name, value[None]) for name, value in outputs.items()]
