"""Drawings to frames, on any device: many videos in one go.

Letters in shape comments: F frames, S slots (shapes of a frame), N side of a frame in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from build_scripts.demo_model.train.drawing import BLOB

SIDE = 448
_GRAINS = 32


class Renderer:
    """Holds what all frames share: the texture bank and the noise.

    Args:
        bank: float16 [K, 3, side, side], see ``textures.make_bank``.
        device: Where to render.
        compiled: Fuse the drawing by torch.compile (CUDA).
    """

    def __init__(self, bank: Tensor, device: torch.device, *, compiled: bool) -> None:
        self.bank = bank.to(device)
        generator = torch.Generator().manual_seed(7)
        self.grain = torch.randn(_GRAINS, 3, SIDE, SIDE, generator=generator).half().to(device)
        self._draw = torch.compile(_draw, dynamic=False) if compiled else _draw

    @torch.no_grad()
    def __call__(self, slots: Tensor, shapes: Tensor, back: Tensor, texture: Tensor, seed: int) -> Tensor:
        """Render.

        Args:
            slots: float32 [F, S, SLOT_VALUES].
            shapes: int64 [F, S].
            back: float32 [F, BACK_VALUES].
            texture: int64 [F].
            seed: Of the noise.

        Returns:
            uint8 [F, 3, 448, 448].
        """
        generator = torch.Generator(device=slots.device).manual_seed(seed)
        frames = slots.shape[0]
        grain = torch.randint(_GRAINS, (frames,), device=slots.device, generator=generator)
        shift = torch.randint(SIDE, (frames, 2), device=slots.device, generator=generator)
        blocks = torch.randn(frames, 3, SIDE // 8, SIDE // 8, device=slots.device, generator=generator)
        return self._draw(slots, shapes, back, texture, self.bank, self.grain, grain, shift, blocks)


@torch.no_grad()
def patch_shapes(slots: Tensor, shapes: Tensor, per_side: int) -> Tensor:
    """What lies in the middle of each patch: int64 [F, per_side ** 2], 1 + the number of the shape, 0 for none or a blob."""
    line = (torch.arange(per_side, device=slots.device) + 0.5) / per_side
    cover = _cover(slots, shapes, line.view(1, 1, -1), line.view(1, -1, 1)).flatten(2)  # [F, S, patches]
    known = (shapes < BLOB)[..., None]
    return ((cover > 0.5) * known * (1 + shapes[..., None])).amax(1)  # shapes never touch


def _draw(
    slots: Tensor,
    shapes: Tensor,
    back: Tensor,
    texture: Tensor,
    bank: Tensor,
    grains: Tensor,
    grain: Tensor,
    shift: Tensor,
    blocks: Tensor,
) -> Tensor:
    line = (torch.arange(SIDE, device=slots.device) + 0.5) / SIDE  # [N]
    x, y = line.view(1, 1, SIDE), line.view(1, SIDE, 1)
    tint = _sample(bank, texture, back[:, 16:22], x, y)  # [F, 3, N, N]
    base, slope_x, slope_y, strength = (back[:, i : i + 3, None, None] for i in (0, 3, 6, 9))  # each [F, 3, 1, 1]
    picture = base + slope_x * (x - 0.5) + slope_y * (y - 0.5) + strength * tint
    cover = _cover(slots, shapes, x, y)  # [F, S, N, N]
    for slot in range(slots.shape[1]):
        alpha = cover[:, slot, None]
        fill = slots[:, slot, 9:12, None, None] + slots[:, slot, 12, None, None, None] * tint
        picture = picture + alpha * (fill - picture)
    picture = picture * back[:, 12, None, None, None]
    rows = (torch.arange(SIDE, device=slots.device) + shift[:, :1]) % SIDE  # [F, N]
    columns = (torch.arange(SIDE, device=slots.device) + shift[:, 1:]) % SIDE
    channels = torch.arange(3, device=slots.device).view(1, 3, 1, 1)
    noise = grains[grain.view(-1, 1, 1, 1), channels, rows[:, None, :, None], columns[:, None, None, :]]
    picture = picture + back[:, 13, None, None, None] * noise
    picture = picture + back[:, 14, None, None, None] * F.interpolate(blocks, (SIDE, SIDE), mode="nearest")
    return (picture * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _sample(bank: Tensor, texture: Tensor, affine: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear look-up of each frame's texture, mirrored at its borders: [F, 3, N, N]."""
    side = bank.shape[-1]
    a, b, c, d, e, f = (affine[:, i, None, None] for i in range(6))
    u, v = _mirrored(a * x + b * y + c) * (side - 1.001), _mirrored(d * x + e * y + f) * (side - 1.001)  # [F, N, N]
    left, top = u.floor(), v.floor()
    right_share, bottom_share = (u - left)[:, None], (v - top)[:, None]
    column, row = left.long()[:, None], top.long()[:, None]
    number = texture.view(-1, 1, 1, 1)
    channel = torch.arange(3, device=bank.device).view(1, 3, 1, 1)
    above = bank[number, channel, row, column] * (1 - right_share) + bank[number, channel, row, column + 1] * right_share
    below = bank[number, channel, row + 1, column] * (1 - right_share) + bank[number, channel, row + 1, column + 1] * right_share
    return above * (1 - bottom_share) + below * bottom_share


def _mirrored(place: Tensor) -> Tensor:
    return 1 - (place.remainder(2) - 1).abs()


def _cover(slots: Tensor, shapes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How much of each pixel each shape covers, 0..1: [F, S, N, N]."""
    cx, cy, half_width, half_height, cos, sin, visible, softness, outline = (slots[:, :, i, None, None] for i in range(9))
    right, up = (x - cx) / half_width, (cy - y) / half_height
    px, py = cos * right - sin * up, sin * right + cos * up  # [F, S, N, N], the shape's own coordinates
    distance = _distance(shapes[:, :, None, None], px, py, outline)
    return (0.5 - distance / softness).clamp(0, 1) * visible


def _distance(shape: Tensor, x: Tensor, y: Tensor, outline: Tensor) -> Tensor:
    """Signed distance to the outline in radii, negative inside; ``outline`` 0..1 picks one of a shape's drawings."""
    ax, ay = x.abs(), y.abs()
    radius = (x * x + y * y + 1e-9).sqrt()
    circle = radius - 1
    square = torch.maximum(ax, ay) - 0.87
    tall = y * (0.87 + 0.3 * outline)
    triangle = torch.maximum(-tall - 0.6, 0.866 * ax + 0.5 * tall - 0.6)
    arm = 0.25 + 0.17 * outline
    cross = torch.minimum(torch.maximum(ax - 1.05, ay - arm), torch.maximum(ax - arm, ay - 1.05))
    ux, uy = x / radius, y / radius
    wobble = 0.25 * (ux * ux - uy * uy) + (0.2 + 0.15 * outline) * ux * (4 * ux * ux - 3) + 0.3 * outline * ux * uy
    blob = radius - 0.8 - wobble
    star = _star(x, y, 0.38 + 0.12 * outline)
    choices = (circle, square, triangle, star, cross, blob)
    result = choices[0]
    for number, choice in enumerate(choices[1:], start=1):
        result = torch.where(shape == number, choice, result)
    return result


def _star(x: Tensor, y: Tensor, inner: Tensor) -> Tensor:
    """A star of five points, the first upwards: fold the plane onto one half of one point, then a line's distance."""
    outer = 1.2
    kx, ky = 0.809016994, -0.587785252  # cos and -sin of 36 degrees
    x = x.abs()
    fold = 2 * (kx * x + ky * y).clamp_min(0)
    x, y = x - fold * kx, y - fold * ky
    fold = 2 * (-kx * x + ky * y).clamp_min(0)
    x, y = x + fold * kx, y - fold * ky
    x, y = x.abs(), y - outer
    bx, by = -ky * inner, kx * inner - 1
    along = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, outer)
    dx, dy = x - bx * along, y - by * along
    return (dx * dx + dy * dy + 1e-9).sqrt() * torch.sign(y * bx - x * by)
