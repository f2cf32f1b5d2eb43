"""One training step after the other, from any saved state on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from build_scripts.demo_model.train.network import DEMO, DemoModel, initialise
from build_scripts.demo_model.train.packing import Batch, attention_mask
from build_scripts.demo_model.train.render import Renderer, patch_shapes

LEARNING_RATE = 1e-3
_WARM_UP = 300  # steps
_DECAY = 0.35  # share of the steps, at the end
_LAST_RATE = 0.02  # share of the learning rate
REFINING_RATE = 6e-4
_REFINING_WARM_UP = 100
_BACKGROUND = 0.05  # its weight among the patches
_AUXILIARY = (0.7, 0.95)  # share of the steps at which the auxiliary loss begins to fade, and is gone


@dataclass
class Losses:
    """Of one step, on the device."""

    text: Tensor
    present: Tensor
    patches: Tensor
    places: Tensor  # mean error of x, y and 3 x radius, as shares of the frame


class Trainer:
    """Model, optimiser and renderer on one device.

    Args:
        steps: Of the whole schedule.
        seed: Of the starting weights.
        bank: Textures, see ``textures.make_bank``.
        device: cuda or cpu.
        start: Weights to start from, by the checkpoint's names. The tower then stays as it is: only the projector and
            the language model learn, without the auxiliary losses and with a schedule of their own.
        rate: The highest learning rate of a run from a checkpoint.
    """

    def __init__(
        self,
        steps: int,
        seed: int,
        bank: Tensor,
        device: torch.device,
        start: Mapping[str, Tensor] | None = None,
        rate: float = REFINING_RATE,
    ) -> None:
        self.steps, self.seed, self.device, self.rate = steps, seed, device, rate
        self.refining = start is not None
        self.step = 0
        fast = device.type == "cuda"
        self.model = DemoModel(DEMO)
        initialise(self.model, seed)
        if start is not None:
            self.model.load_checkpoint(start)
            for part in (self.model.tower, self.model.auxiliary, self.model.patch_head):
                part.requires_grad_(False)
        self.model.to(device)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in learning if p.dim() > 1]
        rest = [p for p in learning if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=fast)
        self.renderer = Renderer(bank, device, compiled=fast)
        if fast:
            self.model.compile_parts()

    def train(self, batch: Batch) -> Losses:
        """One step; the batch is on the trainer's device."""
        share = self.step / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * _refining_share(self.step, share) if self.refining else _rate(self.step, share)
        losses = self._losses(batch)
        loss = losses.text
        if not self.refining:
            fade = (_AUXILIARY[1] - share) / (_AUXILIARY[1] - _AUXILIARY[0])
            loss = loss + min(max(fade, 0), 1) * (8 * losses.present + 2 * losses.patches + 4 * losses.places)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return Losses(*(getattr(losses, item.name).detach() for item in fields(losses)))

    def _losses(self, batch: Batch) -> Losses:
        zero = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens = self.look(batch)
            visual = None if tokens is None else self.model.embed(tokens)
            text = self.say(batch, visual) if batch.ids.shape[1] else None
            heads = None if tokens is None or self.refining else (self.model.auxiliary(visual), self.model.patch_head(tokens))
        text_loss = zero if text is None else F.cross_entropy(text.float(), batch.labels.flatten()[batch.said])
        if heads is None:
            return Losses(text_loss, zero, zero, zero)
        (present, places), patches = heads
        wanted = batch.drawings
        weight = torch.full((), 4.0, device=self.device)
        present_loss = F.binary_cross_entropy_with_logits(present, wanted["present"], pos_weight=weight)
        there = wanted["placed"][..., None]
        error = ((places - wanted["places"]).abs() * there).sum() / (3 * there.sum()).clamp_min(1)
        shapes = patch_shapes(wanted["slots"], wanted["shapes"], self.model.config.patches_per_side)
        weights = torch.ones(patches.shape[2], device=self.device)
        weights[0] = _BACKGROUND
        patch_loss = F.cross_entropy(patches.flatten(0, 1), shapes.flatten(), weights)
        return Losses(text_loss, present_loss, patch_loss, error)

    def look(self, batch: Batch) -> Tensor | None:
        """Render the videos and run the tower: [F, 1025, C]."""
        if not batch.drawings:
            return None
        d = batch.drawings
        frames = self.renderer(d["slots"], d["shapes"], d["back"], d["texture"], batch.seed)
        if not self.refining:
            return self.model.look(frames)
        with torch.no_grad():
            return self.model.look(frames)

    def see(self, batch: Batch) -> Tensor | None:
        """The same to the end: rows for the language model [16 * F, C]."""
        tokens = self.look(batch)
        return None if tokens is None else self.model.embed(tokens)

    def say(self, batch: Batch, visual: Tensor | None) -> Tensor:
        """Logits [N, vocabulary] at the places that have labels."""
        mask = attention_mask(batch.segments, torch.bfloat16)
        hidden = self.model(batch.ids, batch.seen, batch.positions, mask, visual)
        logits: Tensor = self.model.language.output(hidden.flatten(0, 1).index_select(0, batch.said))
        return logits

    def save(self, path: Path) -> None:
        """Write everything that the next stretch needs; the file appears whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "run": self._run(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It belongs to a run with another seed or number of steps.
        """
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if state["run"] != self._run():
            raise ValueError(f"{path} belongs to the run {state['run']}: give the same, or another --state")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _run(self) -> dict[str, Any]:
        return {"steps": self.steps, "seed": self.seed, "refining": self.refining, "rate": self.rate}


def _rate(step: int, share: float) -> float:
    """The learning rate from scratch: a warm-up, a plateau, a straight way down to 2 %."""
    warm = min((step + 1) / _WARM_UP, 1.0)
    return LEARNING_RATE * warm * min(1.0, _LAST_RATE + (1 - _LAST_RATE) * max(1 - share, 0) / _DECAY)


def _refining_share(step: int, share: float) -> float:
    """Of the learning rate from a checkpoint: a short warm-up, then a straight way down to nothing."""
    return min((step + 1) / _REFINING_WARM_UP, 1 - share)
