"""The self-test: read every weight, start the chain on free ports, and ask what is known beforehand."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import tritonclient.grpc as grpcclient
from rich.console import Console
from rich.progress import track
from tritonclient.utils import InferenceServerException

from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.launch import LaunchError, RunningServer, project_home, resolve_device, start
from internvideo_server.limits import TOKENS_PER_FRAME
from internvideo_server.settings import ServeSettings

from ._report import Check, Report, Status, failed, ok, skipped, warning
from ._run import run

#: Tokens of the original model's prompt, as its card and its users publish them; the video does not matter.
_PUBLISHED = ((80, "详细描述一下这个视频的内容。", 1894), (128, "Describe this video in detail.", 2998))
_QUESTION, _SHAPES = "Describe the video.", ("star", "triangle")
_TOWER_FRAMES = 8
_ANSWER_TOKENS = 64
_TIMEOUT_S = 600.0  # of the largest prompt, on a slow CPU


def self_test(settings: ServeSettings, report: Callable[[str], None]) -> Report:
    """What :func:`run` looks at, and that this host computes what it should, on the sample video that comes with the project.

    Args:
        settings: What is going to be served; the test starts it on free ports of this machine alone, without keys.
        report: Takes a line for people at each step of the start.
    """
    own: dict[str, Any] = dict.fromkeys(("port", "triton_grpc_port", "triton_metrics_port"), 0)
    own |= dict.fromkeys(("triton_http_port", "ssl_certfile", "ssl_keyfile", "api_key_file"))
    own |= {"host": "127.0.0.1", "api_key": (), "allowed_hosts": ()}
    settings = settings.model_copy(update=own)
    host = run(settings)
    if not host.ok:
        return Report((*host.checks, skipped("self-test", "nothing was started: mend what failed first")))
    return Report((*host.checks, *_checks(settings, report)))


def _checks(settings: ServeSettings, report: Callable[[str], None]) -> Iterator[Check]:
    demo = (project_home() / "build_scripts" / "demo_model").resolve()
    path = (settings.checkpoint or demo).resolve()
    checkpoint = Checkpoint.open(path)
    weights = check_weights(checkpoint)
    yield weights
    if weights.status is Status.FAILED:
        yield skipped("self-test", "nothing was started: such weights answer with noise at best")
        return
    try:
        with start(settings, report) as server:
            chain = _Chain(server, settings.served_model_name[0], project_home() / "examples" / "demo.mp4")
            report("asking what is known beforehand")
            yield chain.tower(int(checkpoint.llm_config["hidden_size"]))
            for frames, question, tokens in _PUBLISHED:
                yield chain.prompt_length(frames, question, tokens, published=path != demo)
            yield chain.answer(exact=path == demo)
    except LaunchError as error:
        yield failed("self-test", f"the chain did not start: {error}", "internvideo serve --verbose shows the logs")
    yield from _not_checked(settings, demo=path == demo)


def check_weights(checkpoint: Checkpoint) -> Check:
    """Read all tensors; none may hold a value that is not finite."""
    spoilt, count, console = [], len(checkpoint.tensor_files), Console(stderr=True)
    try:
        for name, tensor in track(
            checkpoint.tensors(),
            "reading the weights",
            count,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            if not (finite := tensor.isfinite()).all():
                spoilt.append(f"{name} ({int((~finite).sum())} of {tensor.numel()} values)")
    except CheckpointError as error:
        return failed("weights", str(error), "download the checkpoint again")
    if spoilt:
        more = f" and {len(spoilt) - 1} tensors more" if len(spoilt) > 1 else ""
        return failed("weights", f"not finite: {spoilt[0]}{more}", "download the checkpoint again, or convert it anew")
    return ok("weights", f"{count} tensors, all values finite")


@dataclass(frozen=True)
class _Chain:
    """What is asked of a running server about one video."""

    server: RunningServer
    model: str
    video: Path

    def tower(self, width: int) -> Check:
        """Rows that the vision tower makes of noise: their shape, and that they are finite."""
        frames = np.random.default_rng(0).integers(0, 256, (1, _TOWER_FRAMES, 3, 448, 448), np.uint8)
        tensor = grpcclient.InferInput("frames", frames.shape, "UINT8").set_data_from_numpy(frames)
        fix = "vit.log of a run (internvideo serve --run-directory DIR) tells more"
        try:
            with grpcclient.InferenceServerClient(self.server.grpc_url) as triton:
                result = triton.infer("vit", [tensor], client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            return failed("tower", error.message(), fix)
        rows, dtype = result.as_numpy("prompt_embedding_table"), result.get_output("prompt_embedding_table").datatype
        wanted = (1, _TOWER_FRAMES * TOKENS_PER_FRAME, width)
        if rows.shape != wanted:
            return failed("tower", f"{_TOWER_FRAMES} frames became {list(rows.shape)}, not {list(wanted)}", fix)
        if not np.isfinite(rows).all():
            count = int((~np.isfinite(rows)).sum())
            return failed("tower", f"{count} of {rows.size} values are not finite in {dtype}", "--dtype float32 or bfloat16")
        return ok("tower", f"{_TOWER_FRAMES} frames became {list(rows.shape)} {dtype}, all finite")

    def prompt_length(self, frames: int, question: str, tokens: int, *, published: bool) -> Check:
        """The tokens of a prompt of so many frames."""
        name = f"{frames} frames"
        try:
            found = self._ask(question, num_frames=frames, max_tokens=1)["usage"]["prompt_tokens"]
        except _RefusedError as error:
            return failed(name, str(error), f"serve with --max-frames {frames} or more to check it")
        if not published:
            return skipped(name, f"answered, {found} tokens by the demo model's vocabulary; the real one makes {tokens}")
        if found != tokens:
            fix = "tokenizer.model or added_tokens.json are not InternVideo2.5's: download them again"
            return failed(name, f"the prompt has {found} tokens, published are {tokens}", fix)
        return ok(name, f"the prompt has {tokens} tokens, as published")

    def answer(self, *, exact: bool) -> Check:
        """What it says about the video, and that its log-probabilities are finite.

        Args:
            exact: Whether it is the demo model, of which the very words are known.
        """
        try:
            choice = self._ask(_QUESTION, max_tokens=_ANSWER_TOKENS, logprobs=True)["choices"][0]
        except _RefusedError as error:
            return failed("answer", str(error), "adapter.log and the models' logs of a run tell more")
        text = choice["message"]["content"]
        if not all(np.isfinite(token["logprob"]) for token in choice["logprobs"]["content"]):
            return failed("answer", f"log-probabilities are not finite: {text!r}", "--dtype float32 or bfloat16")
        right = json.loads(self.video.with_suffix(".json").read_text(encoding="utf-8"))[_QUESTION]
        if exact and text != right:
            return failed("answer", f"{text!r}, right is {right!r}", "install the package again: its files are damaged")
        if not all(shape in text.lower() for shape in _SHAPES):
            return warning("answer", repr(text), f"judge it yourself; in {self.video} one sees: {right}")
        return ok("answer", repr(text))

    def _ask(self, question: str, *, num_frames: int | None = None, **fields: Any) -> dict[str, Any]:
        url = "data:video/mp4;base64," + base64.b64encode(self.video.read_bytes()).decode()
        video = {"url": url} if num_frames is None else {"url": url, "num_frames": num_frames}
        content = [{"type": "video_url", "video_url": video}, {"type": "text", "text": question}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **fields}
        try:
            response = httpx2.post(f"{self.server.openai_url}/chat/completions", json=body, timeout=_TIMEOUT_S, trust_env=False)
            document: dict[str, Any] = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise _RefusedError(f"no answer: {error or type(error).__name__}") from error
        if response.status_code != httpx2.codes.OK:
            raise _RefusedError(f"HTTP {response.status_code}: {document['error']['message']}")
        return document


class _RefusedError(Exception):
    """The server did not answer with 200."""


def _not_checked(settings: ServeSettings, *, demo: bool) -> Iterator[Check]:
    if demo:
        yield skipped("real weights", "not checked: --checkpoint DIR names the real checkpoint's folder")
    if settings.engine is not None:
        yield skipped("engine weights", "not read; they were checked by the answer alone")
    if resolve_device(settings.device).index is None:
        yield skipped("gpu", "not checked: ran on the CPU (half precision and CUDA memory between the models are the GPU's)")
