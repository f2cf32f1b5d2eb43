"""The whole demo model for training: the project's vision code, a trainable InternLM2, and a head that is thrown away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from build_scripts.checkpoint_sizes import IMAGE_SIZE, PATCH_SIZE, Dimensions
from build_scripts.demo_model.train.drawing import PRESENT
from build_scripts.demo_model.train.language_model import LanguageModel
from build_scripts.demo_model.train.scene import COLOUR_NAMES, SHAPES
from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.vit.vision import VisionConfig
from internvideo_server.vit.vision.merging import merge_tokens
from internvideo_server.vit.vision.tower import VisionTower, make_projector, normalise, pixel_shuffle

DEMO = Dimensions(
    vit_hidden=128,
    vit_layers=4,
    vit_heads=2,
    vit_mlp=512,
    llm_hidden=256,
    llm_layers=4,
    llm_heads=4,
    llm_kv_heads=2,
    llm_mlp=704,
    vocab_size=1536,
)
_PREFIXES = {"tower.": "vision_model.", "projector.": "mlp1.", "language.": "language_model."}


class DemoModel(nn.Module):
    """Tower, projector and language model, with the auxiliary head."""

    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.config = vision_config(d)
        self.tower = VisionTower(self.config)
        self.projector = make_projector(self.config)
        self.language = LanguageModel(d)
        self.auxiliary = AuxiliaryHead(d.llm_hidden)
        self.patch_head = PatchHead(d.vit_hidden)
        self._normalise = normalise

    def compile_parts(self) -> None:
        """Fuse what runs at fixed numbers of frames, and the language model's layers at any lengths (CUDA)."""
        self._normalise = torch.compile(normalise, dynamic=False)
        for part in (self.tower.embeddings, *self.tower.encoder.layers):
            part.compile(dynamic=False)
        for layer in self.language.model.layers:
            layer.compile(dynamic=True)

    def look(self, frames: Tensor) -> Tensor:
        """The tower alone: uint8 [F, 3, 448, 448] to [F, 1025, C]."""
        tokens: Tensor = self.tower(self._normalise(frames))
        return tokens

    def embed(self, tokens: Tensor) -> Tensor:
        """With ``look`` in front, this is VisionModel.embed, but differentiable.

        Args:
            tokens: [F, 1025, C], F a multiple of 4.

        Returns:
            [16 * F, hidden] in the dtype of autocast.
        """
        x = pixel_shuffle(tokens, self.config.patches_per_side)  # [F, 256, 4 C]
        x = x.reshape(-1, FRAMES_PER_GROUP * self.config.tokens_per_frame, self.config.shuffled_size)
        rows: Tensor = self.projector(self._merged(x)).flatten(0, 1)
        return rows

    def _merged(self, x: Tensor) -> Tensor:
        """The project's merging; the choice of partners has no gradient, their means do."""
        with torch.autocast(x.device.type, enabled=False):
            return merge_tokens(x.float(), self.config.merge_heads, FRAMES_PER_GROUP * TOKENS_PER_FRAME)

    def forward(self, ids: Tensor, seen: Tensor, positions: Tensor, mask: Tensor, visual: Tensor | None) -> Tensor:
        """Hidden states of packed sequences.

        Args:
            ids: int64 [B, S].
            seen: int64 [R]: where each row of ``visual`` stands in the flattened [B * S].
            positions: int64 [B, S].
            mask: Added to attention scores [B, 1, S, S].
            visual: [R, C], or None without any video.

        Returns:
            [B, S, C].
        """
        x = self.language.model.tok_embeddings(ids)
        if visual is not None:
            # Each row is copied once: the gradient of indexing by `rows` would add up in one place for all the text.
            x = x.flatten(0, 1).index_copy(0, seen, visual.to(x.dtype)).view_as(x)
        hidden: Tensor = self.language(x, positions, mask)
        return hidden

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The weights under the checkpoint's names, float32; without the auxiliary head."""
        state = self.state_dict()
        return {
            new + name.removeprefix(old): state[name] for old, new in _PREFIXES.items() for name in state if name.startswith(old)
        }

    def load_checkpoint(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights from a checkpoint of the same sizes, in any dtype; the auxiliary heads stay as they are.

        Raises:
            ValueError: Other names or shapes.
        """
        own = self.checkpoint_tensors()
        unlike = [name for name in own.keys() | tensors.keys() if name not in own or name not in tensors]
        unlike += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        if unlike:
            raise ValueError(f"this is no checkpoint of the demo model: {min(unlike)} does not fit")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


class AuxiliaryHead(nn.Module):
    """Reads off one frame's 16 tokens which colours and shapes are there, and where; only training needs it.

    Without this loss the vision tower learns colours and stays blind to places and shapes.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.score = nn.Linear(hidden, 1)
        self.inner = nn.Linear(hidden, 384)
        self.outer = nn.Linear(384, PRESENT + 3 * len(COLOUR_NAMES))

    def forward(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """From rows [16 * F, C] to logits of presence [F, PRESENT] and places [F, colours, 3]."""
        x = self.norm(visual.reshape(-1, TOKENS_PER_FRAME, visual.shape[1]))  # [F, 16, C]
        pooled = (self.score(x).softmax(1) * x).sum(1)
        out = self.outer(nn.functional.gelu(self.inner(pooled))).float()
        return out[:, :PRESENT], out[:, PRESENT:].unflatten(1, (-1, 3))


class PatchHead(nn.Module):
    """Says of every patch which shape it lies on, if any; only training needs it.

    A patch in a square's middle is plain colour: to say "square" it must look at the others. With the loss on whole frames
    alone, shapes stayed near guessing for 9,000 steps.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.outer = nn.Linear(hidden, 1 + len(SHAPES))

    def forward(self, tokens: Tensor) -> Tensor:
        """From the tower's tokens [F, 1 + patches, C] to logits [F, patches, 1 + shapes]; 0 is background."""
        logits: Tensor = self.outer(self.norm(tokens[:, 1:])).float()
        return logits


def vision_config(d: Dimensions) -> VisionConfig:
    """Sizes of the vision path, as a checkpoint of these dimensions states them."""
    return VisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=d.vit_hidden,
        num_layers=d.vit_layers,
        num_heads=d.vit_heads,
        mlp_size=d.vit_mlp,
        layer_norm_eps=1e-6,
        merge_heads=d.llm_heads,
        llm_hidden_size=d.llm_hidden,
    )


def initialise(model: DemoModel, seed: int) -> None:
    """Starting weights. The position embedding must be strong: at the usual 0.02 the tower never learns places."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # Any: torch says of every attribute of a module that it may be a tensor, too.
    vision: Any = model.tower
    language: Any = model.language.model
    for layer in vision.encoder.layers:
        nn.init.constant_(layer.ls1, 0.1)
        nn.init.constant_(layer.ls2, 0.1)
    nn.init.normal_(vision.embeddings.class_embedding, std=0.02, generator=generator)
    nn.init.normal_(language.tok_embeddings.weight, std=0.5, generator=generator)
    for layer in language.layers:
        for linear in (layer.attention.wo, layer.feed_forward.w2):
            linear.weight.data /= math.sqrt(2 * len(language.layers))
    with torch.no_grad():
        vision.embeddings.position_embedding.copy_(_waves(model.config.patches_per_side, model.config.hidden_size))


def _waves(side: int, channels: int) -> Tensor:
    """Sines and cosines of row (first half of the channels) and column, of wavelengths 2 pi to 64 pi patches."""
    quarter = channels // 4
    frequencies = 32 ** -(torch.arange(quarter) / max(quarter - 1, 1))
    angles = torch.arange(side)[:, None] * frequencies  # [side, quarter]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, channels / 2]
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    patches = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, channels), patches])[None]  # the class token has no place
