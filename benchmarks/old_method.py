"""The old system's method, step by step in one process, to compare with.

Frames one by one from decord with one thread; Pillow's bicubic resize, ToTensor and Normalize in float32 on the CPU; the tower
with its attention written out; the embeddings to the host, through shared memory and back; Hugging Face's ``generate``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel, LlamaForCausalLM

from benchmarks.decode import by_old_method, normalise
from internvideo_server.checkpoint import Checkpoint

_TOWER_NAMES = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
    "encoder.layers": "encoder.layer",
    "attn.proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
}


class OldMethod:
    """Holds the models; ``seconds`` has the time of each step of the last `answer`.

    Args:
        checkpoint: InternVideo2.5's directory.
        engine: Its language model in the Llama layout (``build_scripts/export_llm.py``).
        device: Where the models run.
    """

    def __init__(self, checkpoint: Path, engine: Path, device: torch.device) -> None:
        source = Checkpoint.open(checkpoint)
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._tower = _tower(source).to(device, self._dtype)
        width = self._tower.config.hidden_size * 4
        hidden = source.llm_config["hidden_size"]
        self._chunks = source.llm_config["num_attention_heads"]
        projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        projector.load_state_dict({name.removeprefix("mlp1."): tensor for name, tensor in source.tensors("mlp1.")})
        self._projector = projector.to(device, self._dtype)
        model = LlamaForCausalLM.from_pretrained(engine / "llama", dtype=self._dtype, local_files_only=True)
        self._language_model = model.to(device).eval()
        self.seconds: dict[str, float] = {}

    @torch.inference_mode()
    def answer(self, video: Path, num_frames: int, text_tokens: int, new_tokens: int) -> None:
        """Answer a prompt of ``text_tokens`` random ids beside the frames'."""
        with self._timed("decode, resize"):
            frames = by_old_method(video, num_frames)
        with self._timed("normalise"):
            pixels = normalise(frames)
        with self._timed("tower"):
            rows = self._embed(torch.from_numpy(pixels).to(self._device, self._dtype))
        with self._timed("shared memory"):
            rows = self._through_shared_memory(rows)
        table = self._language_model.get_input_embeddings()
        ids = torch.randint(3, 256, (1, text_tokens), device=self._device)
        embeddings = torch.cat([table(ids[:, :40]), rows[None], table(ids[:, 40:])], dim=1)
        for step, count in (("prefill", 1), ("generate", new_tokens)):
            with self._timed(step):
                self._language_model.generate(
                    inputs_embeds=embeddings,
                    attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64, device=self._device),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )

    def _embed(self, pixels: Tensor) -> Tensor:
        """Float [T, 3, 448, 448] -> [16 T, hidden]."""
        tokens = self._tower(pixels).last_hidden_state[:, 1:]  # [T, 1024, C]
        count, side = len(tokens), 32
        grid = tokens.view(count, side // 2, 2, side // 2, 2, -1).transpose(2, 3)  # [T, 16, 16, 2, 2, C]
        merged = _merge(grid.reshape(count // 4, 4 * (side // 2) ** 2, -1), self._chunks)  # [T / 4, 64, 4 C]
        rows: Tensor = self._projector(merged).flatten(0, 1)
        return rows

    def _through_shared_memory(self, rows: Tensor) -> Tensor:
        host = rows.view(torch.uint8).cpu().numpy()
        memory = SharedMemory(create=True, size=host.nbytes)
        try:
            shared: np.ndarray[Any, Any] = np.ndarray(host.shape, np.uint8, memory.buf)
            shared[:] = host
            returned = torch.from_numpy(shared.copy()).to(self._device).view(rows.dtype)
            del shared
            return returned
        finally:
            memory.close()
            memory.unlink()

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[step] = time.perf_counter() - began


def _tower(source: Checkpoint) -> InternVLVisionModel:
    vision = source.vision_config
    config = InternVLVisionConfig(
        hidden_size=vision["hidden_size"],
        num_hidden_layers=vision["num_hidden_layers"],
        num_attention_heads=vision["num_attention_heads"],
        intermediate_size=vision["intermediate_size"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        attention_bias=vision["qkv_bias"],
        use_qk_norm=vision["qk_normalization"],
        norm_type=vision["norm_type"],
        layer_norm_eps=vision["layer_norm_eps"],
        use_mean_pooling=True,
        attn_implementation="eager",
    )
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.tensors("vision_model."):
        name = name.removeprefix("vision_model.")
        for old, new in _TOWER_NAMES.items():
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        else:
            tensors[name] = tensor
    model = InternVLVisionModel(config)
    model.load_state_dict(tensors)
    return model.eval()


def _merge(tokens: Tensor, chunks: int) -> Tensor:
    """HiCo's token merging, [groups, 1024, width] -> [groups, 64, width]: each round halves the tokens."""
    sizes = torch.ones(*tokens.shape[:2], 1, device=tokens.device, dtype=tokens.dtype)
    while tokens.shape[1] > 64:
        metric = tokens.view(*tokens.shape[:2], chunks, -1).mean(dim=2)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        best = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).argmax(dim=-1, keepdim=True)  # [groups, half, 1]
        weighted = tokens * sizes
        total = weighted[:, 1::2].scatter_add(1, best.expand(-1, -1, tokens.shape[-1]), weighted[:, ::2])
        sizes = sizes[:, 1::2].scatter_add(1, best, sizes[:, ::2])
        tokens = total / sizes
    return tokens
