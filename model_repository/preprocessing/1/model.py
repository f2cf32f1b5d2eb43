"""Triton model `preprocessing`: chat messages to frames and token ids. The work is done in internvideo_server.preprocessing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from internvideo_server.errors import invalid
from internvideo_server.handoff import HandoffClient
from internvideo_server.limits import EngineLimits
from internvideo_server.preprocessing.attachments import Attachments, file_list
from internvideo_server.preprocessing.chat import ChatTokenizer, Endings, word_list
from internvideo_server.preprocessing.frame_store import FrameStore
from internvideo_server.preprocessing.media import MediaPolicy
from internvideo_server.preprocessing.pipeline import Preprocessor
from internvideo_server.preprocessing.preview import preview
from internvideo_server.preprocessing.video import DecodeLimits, FrameDecoder
from internvideo_server.report import Report
from internvideo_server.settings import PreprocessingSettings, from_parameters
from internvideo_server.triton_model import Job, TritonMeter, WorkerPool, keep_loaded, parameters, prepare_process


class TritonPythonModel:
    """Prepares several requests at once, each on a worker thread with a decoder process."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Read the limits and the tokenizer, start the decoder processes."""
        prepare_process()
        settings = from_parameters(PreprocessingSettings, parameters(args))
        tokenizer = ChatTokenizer.from_file(settings.tokenizer_path)
        self._endings = Endings.of(tokenizer)
        self._decoder = FrameDecoder(settings.decode_workers, DecodeLimits.of(settings))
        meter = TritonMeter("preprocessing")
        frames = FrameStore(self._decoder, settings.frame_cache_mb << 20, meter, meter.publish)
        self._prepare = Preprocessor(
            tokenizer,
            EngineLimits.from_engine_dir(settings.engine_dir),
            MediaPolicy.of(settings),
            frames,
            settings.max_frames,
            HandoffClient(settings.handoff_id),
            meter,
            settings.image_frames_threshold,
            threading.Semaphore(settings.max_queue_size),
        )
        # Each request has a thread: those with media take half of them, and only what must be decoded waits, for a decoder.
        self._pool = WorkerPool(
            "preprocessing",
            self._answer,
            workers=2 * settings.max_queue_size,
            max_queue_size=2 * settings.decode_workers,
            timeout_s=settings.request_timeout,
            meter=meter,
            on_shortage=frames.give_back,
            on_stop=self._prepare.stop,
        )
        keep_loaded()

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
        salt = pb_utils.get_input_tensor_by_name(job.request, "cache_salt")
        only_frames = pb_utils.get_input_tensor_by_name(job.request, "frames_only")
        if messages is not None and only_frames is not None and only_frames.as_numpy().item():
            found = preview(self._prepare, self._decoder, messages.as_numpy().item(), _attachments(job.request), job.deadline)
            return [pb_utils.Tensor("preview", np.array([[found]], np.object_))]
        return_frames = pb_utils.get_input_tensor_by_name(job.request, "return_frames")
        if messages is None or output_len is None:
            raise invalid("messages and request_output_len are needed", "messages")
        endings = self._endings_of(job.request)
        prepared = self._prepare(
            messages.as_numpy().item(),
            int(output_len.as_numpy().item()),
            _attachments(job.request),
            job.deadline,
            job.request_id,
            b"" if salt is None else salt.as_numpy().item(),
            return_frames=return_frames is not None and bool(return_frames.as_numpy().item()),
        )
        ids = prepared.prompt.input_ids
        report = Report.of_preprocessing(job.account(), [medium.report for medium in prepared.media])
        outputs: dict[str, np.ndarray[Any, Any]] = {
            "frames": prepared.frames,
            "frame_keys": np.array([list(m.key) for m in prepared.media], np.uint8).reshape(-1, 32),
            "frame_counts": np.array([m.sent for m in prepared.media], np.int32),
            "reservation": np.array([prepared.reservation], np.uint64),
            "deadline": np.array([job.deadline.at], np.float64),
            "input_ids": ids,
            "input_lengths": np.array([len(ids)], np.int32),
            "output_len": np.array([prepared.max_new_tokens], np.int32),
            "prompt_table_extra_ids": prepared.prompt.extra_ids,
            "end_id": np.array([endings.end_id], np.int32),
            "pad_id": np.array([endings.pad_id], np.int32),
            "stop_words_list": word_list(endings.stop_words),
            "report": np.array([report.to_json()], np.object_),
        }
        return [pb_utils.Tensor(name, value[None]) for name, value in outputs.items()]

    def _endings_of(self, request: Any) -> Endings:
        ids = pb_utils.get_input_tensor_by_name(request, "stop_token_ids")
        ignore = pb_utils.get_input_tensor_by_name(request, "ignore_eos")
        return self._endings.asked(
            [] if ids is None else ids.as_numpy().reshape(-1).tolist(),
            self._prepare.limits.vocab_size,
            ignore_eos=ignore is not None and bool(ignore.as_numpy().item()),
        )


def _attachments(request: Any) -> Attachments:
    inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in ("video_bytes", "video_sizes")]
    content, sizes = (None if tensor is None else tensor.as_numpy().reshape(-1) for tensor in inputs)
    files = pb_utils.get_input_tensor_by_name(request, "video_files")
    return Attachments(content, sizes, () if files is None else file_list(files.as_numpy().item()))
