"""vLLM's ``LLMEngine`` in this process: one thread makes it and steps it, callers leave it notes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internvideo_server.engine.batch import BatchOutput
from internvideo_server.engine.request import GenerationRequest
from internvideo_server.engine.sequence_state import SequenceState
from internvideo_server.limits import EngineLimits
from internvideo_server.memory import kv_cache_bytes

from ._options import VllmOptions

_log = logging.getLogger(__name__)
_TOKENS_A_STEP = 8192  # several whole prompts
# All others wait for a long prompt's step. Beside videos of 1,024 frames, streams of text stood still for 469 ms where it took
# the whole prompt, for 139 with 2,048 tokens and for 71 with these (H200, bfloat16).
_SHORT_ROWS, _TOKENS_BESIDE_LONG = 2560, 1024
_GRAPH_SIZES = [1, 2, 4, 8, *range(16, 129, 8)]


def tokens_a_step(limits: EngineLimits) -> int:
    """At most. vLLM's encoder cache takes the largest table all the same: it is sized by the model's ``max_table_rows``."""
    return _TOKENS_A_STEP if limits.max_rows <= _SHORT_ROWS else max(_TOKENS_BESIDE_LONG, limits.max_batch_size)


@dataclass
class _Running:
    name: str
    state: SequenceState
    guided: bool
    internal: str = ""  # vLLM's own id
    tokens: list[int] = field(default_factory=list)


class VllmBatch:
    """The batch of :class:`Engine` on vLLM; see the protocol ``Batch``.

    Args:
        engine_dir: Holds ``llama/`` and ``tokenizer.json``.
        limits: Of the engine.
        device: Where it runs, with an index.
        options: What the deployment says.
        end_token: The model's own end.
        share_prefixes: Keep and share the KV cache of equal beginnings.
        on_dropped: Called with the name of each cancelled answer once vLLM has let it go; by the step thread.

    Raises:
        RuntimeError: vLLM did not start.
    """

    def __init__(
        self,
        engine_dir: Path,
        limits: EngineLimits,
        device: torch.device,
        options: VllmOptions,
        end_token: int,
        *,
        share_prefixes: bool,
        on_dropped: Callable[[str], None],
    ) -> None:
        self._dir, self._limits, self._device, self._options = engine_dir, limits, device, options
        self._end_token, self._reuse, self._on_dropped = end_token, share_prefixes, on_dropped
        self._wake = threading.Condition()
        self._notes: deque[Callable[[Any], None]] = deque()  # guarded by _wake
        self._closing = False
        self._running: dict[str, _Running] = {}  # the step thread's own
        self._computed = self._steps = 0
        self._outputs: queue.SimpleQueue[BatchOutput] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._tokenizer_dir = Path(tempfile.mkdtemp(prefix="internvideo-tokenizer-"))
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="vllm-steps", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self.close()
            raise RuntimeError(f"vLLM did not start: {type(self._failure).__name__}: {self._failure}") from self._failure

    def add(self, name: str, request: GenerationRequest, state: SequenceState) -> None:
        """Start an answer; see ``Batch``."""
        from ._params import vllm_params
        from ._prompt import table_prompt

        vocab_size = self._limits.vocab_size
        # The processes of several GPUs are sent the rows.
        table = request.table if self._options.tensor_parallel_size == 1 else request.table.cpu()
        prompt = table_prompt(request.input_ids, request.extra_ids, table, vocab_size)
        params = vllm_params(request, state.params, vocab_size, self._end_token)
        running = _Running(name, state, request.guide is not None)
        self._note(lambda engine: self._add(engine, running, prompt, params))

    def cancel(self, name: str) -> None:
        """Ask for the end of an answer; see ``Batch``."""
        self._note(lambda engine: self._cancel(engine, name))

    def next_output(self, timeout: float) -> BatchOutput | None:
        """The next output of any answer; see ``Batch``."""
        try:
            return self._outputs.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def alive(self) -> bool:
        """Whether the step thread runs."""
        return self._thread.is_alive() and not self._closing

    @property
    def cache_used(self) -> float | None:
        """Not known here; see ``Batch``."""
        return None

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model, told when an answer has its first; see ``Batch``."""
        return self._computed

    @property
    def beats(self) -> int:
        """Steps that have ended; see ``Batch``."""
        return self._steps

    def close(self) -> None:
        """End the step thread and give the GPU's memory back."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        shutil.rmtree(self._tokenizer_dir, ignore_errors=True)

    def _note(self, note: Callable[[Any], None]) -> None:
        with self._wake:
            self._notes.append(note)
            self._wake.notify()

    def _run(self, ready: threading.Event) -> None:
        try:
            engine = self._make()
        except BaseException as error:
            self._failure = error
            ready.set()
            return
        ready.set()
        try:
            self._loop(engine)
        except BaseException:
            _log.exception("vLLM's steps ended")
        finally:
            with contextlib.suppress(Exception):
                engine.engine_core.shutdown()

    def _make(self) -> Any:
        _prepare_environment()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from ._model import model_overrides, register

        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        register()
        limits, options = self._limits, self._options
        arguments: dict[str, Any] = {
            "model": str(self._dir / "llama"),
            "tokenizer": str(_write_tokenizer(self._dir / "tokenizer.json", self._end_token, self._tokenizer_dir)),
            "generation_config": "vllm",  # no defaults from the model's directory
            "dtype": limits.dtype,
            "hf_overrides": model_overrides(limits.max_rows),
            "max_model_len": limits.max_seq_len,
            "max_num_seqs": limits.max_batch_size,
            "max_num_batched_tokens": tokens_a_step(limits),
            "limit_mm_per_prompt": {"video": 999},
            "mm_processor_cache_gb": 0,
            "skip_mm_profiling": True,
            "enable_prefix_caching": self._reuse,
            "disable_log_stats": True,
            "kv_cache_dtype": options.kv_cache_dtype,
            "tensor_parallel_size": options.tensor_parallel_size,
            # The embedded engine's library, so that both follow and refuse the same guides.
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        }
        if options.quantization != "none":
            arguments["quantization"] = {"fp8": "fp8", "int8": "compressed-tensors"}[options.quantization]
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            arguments["kv_cache_memory_bytes"] = kv_cache_bytes(
                self._dir, limits, free, options.gpu_memory, adapt=options.deployment
            )
            arguments["gpu_memory_utilization"] = round(0.9 * free / total, 3)  # only looked at, against what is free
            arguments["compilation_config"] = {"cudagraph_capture_sizes": _GRAPH_SIZES}
        config = EngineArgs(**(arguments | options.engine_args)).create_engine_config()
        if self._device.index:  # else vLLM takes the first GPU that it sees
            config.device_config.device = self._device
        return LLMEngine.from_vllm_config(config, disable_log_stats=True)

    def _loop(self, engine: Any) -> None:
        while True:
            with self._wake:
                while not (self._notes or self._closing or engine.has_unfinished_requests()):
                    self._wake.wait()
                if self._closing:
                    return
                notes = list(self._notes)
                self._notes.clear()
            for note in notes:
                note(engine)
            if engine.has_unfinished_requests():
                for output in engine.step():  # with asynchronous scheduling it may be empty
                    self._take(output)
                self._steps += 1

    def _add(self, engine: Any, running: _Running, prompt: Any, params: Any) -> None:
        try:
            running.internal = engine.add_request(running.name, prompt, params)
        except Exception as error:  # what vLLM refuses: this answer's fault alone
            _log.warning("vLLM refused a request: %s", error)
            self._outputs.put(BatchOutput(running.name, [], finished=True, error=str(error)))
        else:
            self._running[running.name] = running

    def _cancel(self, engine: Any, name: str) -> None:
        if (running := self._running.pop(name, None)) is not None:
            engine.abort_request([running.internal], internal=True)
            self._on_dropped(name)

    def _take(self, output: Any) -> None:
        running = self._running.get(output.request_id)
        if running is None:
            return
        one, state = output.outputs[0], running.state
        if not running.tokens:
            self._computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        self._computed += len(one.token_ids)
        for index, token in enumerate(one.token_ids):
            if one.logprobs:
                _note_log_probs(state, token, one.logprobs[index])
            if running.guided and token == self._end_token and state.complete_at is None:
                state.complete_at = len(running.tokens)
            running.tokens.append(int(token))
        if output.finished:
            del self._running[running.name]
        self._outputs.put(BatchOutput(running.name, list(running.tokens), bool(output.finished)))


def _note_log_probs(state: SequenceState, token: int, found: Any) -> None:
    state.log_probs.append(float(found[token].logprob))
    if count := state.params.num_top_logprobs:
        ranked = sorted((entry.rank, i, entry.logprob) for i, entry in found.items() if entry.rank is not None)[:count]
        ids = np.array([i if np.isfinite(logprob) else -1 for _, i, logprob in ranked], np.int32)
        state.top_logprobs.append((ids, np.array([logprob for *_, logprob in ranked], np.float32)))


def _write_tokenizer(tokenizer_file: Path, end_token: int, folder: Path) -> Path:
    """What vLLM's guides need of a tokenizer in Hugging Face's layout."""
    document = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    end = next(token["content"] for token in document["added_tokens"] if token["id"] == end_token)
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _prepare_environment() -> None:
    """Before vllm is imported for the first time."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: tables go in by reference
        "VLLM_CONFIGURE_LOGGING": "0",  # the process's own logging stays
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "HF_HUB_OFFLINE": "1",
    }.items():
        os.environ.setdefault(name, value)
    # vLLM and torch.compile start helpers with sys.executable, which in Triton's stub is not Python.
    if "python" not in Path(sys.executable or "").name:
        sys.executable = str(Path(sys.prefix) / "bin" / "python3")
