"""vLLM's own InternVL server on the same GPU: the same clips and question, their frames sent as pictures.

``python benchmarks/peer.py VIDEO --checkpoint DIR --engine DIR``: vLLM knows InternViT and Llama, but neither InternLM2's layout
nor this model's video token. So it gets the checkpoint's shape with random weights, the exported tokenizer, and each frame as an
`image_url`. Not the same work: it has no token merging, so a frame takes 256 tokens, here 16.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import end_to_end
from benchmarks.served import wait_for
from internvideo_server.checkpoint import read_config
from internvideo_server.launch import resolve_ports

MODEL = "peer"
MODEL_LEN = 32768
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: transformers has no class for the original checkpoint's config.json.
CONFIGURATION = """
from transformers import LlamaConfig, PretrainedConfig

class PeerConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True
    sub_configs = {"vision_config": PretrainedConfig, "text_config": LlamaConfig}

    def __init__(self, vision_config=None, text_config=None, **more):
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.text_config = LlamaConfig(**(text_config or {}))
        super().__init__(**more)
"""


def main(
    video: Annotated[Path, typer.Argument(help="a video file")],
    checkpoint: Annotated[Path, typer.Option(help="the model whose shape is taken")],
    engine: Annotated[Path, typer.Option(help="of export_llm.py: its tokenizer and the shape of its Llama are taken")],
    num_frames: Annotated[list[int], typer.Option(help="of a video; repeatable")] = [32, 80],  # noqa: B006 (typer's form)
    streams: Annotated[list[int], typer.Option(help="at once; repeatable")] = [1, 4, 16],  # noqa: B006
    new_tokens: Annotated[int, typer.Option()] = 64,
    repeats: Annotated[int, typer.Option(help="videos of each stream")] = 3,
    vllm: Annotated[list[str] | None, typer.Option(help="another argument of vLLM's server; repeatable")] = None,
    start_timeout: Annotated[float, typer.Option(help="seconds")] = 300.0,
    name: Annotated[str, typer.Option(help="write benchmarks/results/NAME.json and .md")] = "",
) -> None:
    """Start it, measure, stop it."""
    port = resolve_ports({"port": ("127.0.0.1", 0)})["port"]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), checkpoint, engine)
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            f"--model={folder}",
            f"--served-model-name={MODEL}",
        ]
        command += [
            f"--port={port}",
            "--host=127.0.0.1",
            "--load-format=dummy",
            "--trust-remote-code",
            f"--max-model-len={MODEL_LEN}",
        ]
        command += [f'--limit-mm-per-prompt={{"image": {max(num_frames)}}}', *(vllm or [])]
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            try:
                wait_for(f"http://127.0.0.1:{port}/health", process, start_timeout)
                end_to_end.main(
                    video,
                    openai=f"http://127.0.0.1:{port}/v1",
                    model=MODEL,
                    as_images=True,
                    streams=streams,
                    num_frames=num_frames,
                    new_tokens=new_tokens,
                    repeats=repeats,
                    name=name,
                )
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def make_model(folder: Path, checkpoint: Path, engine: Path) -> None:
    """A checkpoint without weights that vLLM's InternVLChatModel takes."""
    config: dict[str, Any] = dict(read_config(checkpoint))
    config.pop("llm_config")
    config["auto_map"] = {"AutoConfig": "configuration_peer.PeerConfig"}
    config["text_config"] = json.loads((engine / "llama" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_peer.py").write_text(CONFIGURATION)
    (folder / "tokenizer.json").write_text((engine / "tokenizer.json").read_text())
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    typer.run(main)
