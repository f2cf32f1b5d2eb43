"""How far a vision model is from the same weights in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from internvideo_server.limits import FRAMES_PER_GROUP, TOKENS_PER_FRAME
from internvideo_server.vit.vision import VisionModel
from internvideo_server.vit.vision.merging import average, choose, closest_odd, merge_metric, metric_of
from internvideo_server.vit.vision.tower import pixel_shuffle

MERGED = FRAMES_PER_GROUP * TOKENS_PER_FRAME  # tokens of a group


@dataclass(frozen=True)
class Accuracy:
    """``off`` is 1 - cosine between a token and float32's."""

    worst_token_off: float  # of the tower's output
    mean_token_off: float
    worst_merged_off: float  # of the merged tokens, when both are merged as float32 chooses
    mean_merged_off: float
    choices_flipped: float  # share of the merge choices that differ, each asked after float32's choices before it


@torch.inference_mode()
def accuracy(model: VisionModel, exact: VisionModel, frames: Tensor) -> Accuracy:
    """Compare on uint8 frames [T, 3, side, side], T a multiple of 4; ``exact`` is the float32 model."""
    ours, theirs = model.tokens(frames), exact.tokens(frames)
    cosine = torch.cosine_similarity(ours, theirs, dim=2)
    config = exact.config
    ours, theirs = (
        pixel_shuffle(tokens, config.patches_per_side).view(-1, FRAMES_PER_GROUP * config.tokens_per_frame, config.shuffled_size)
        for tokens in (ours, theirs)
    )
    choices = choose(metric_of(theirs, config.merge_heads), MERGED)
    metric, flips = metric_of(ours, config.merge_heads), []
    for choice in choices:
        flips.append((closest_odd(metric) != choice).flatten())
        metric = merge_metric(metric, choice)
    merged = torch.cosine_similarity(average(ours, choices, MERGED), average(theirs, choices, MERGED), dim=2)
    return Accuracy(
        1 - cosine.min().item(),
        1 - cosine.mean().item(),
        1 - merged.min().item(),
        1 - merged.mean().item(),
        torch.cat(flips).float().mean().item(),
    )
