"""A scene in numbers: what the renderer is told about each frame, and what the auxiliary loss wants to hear back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from build_scripts.demo_model.train.scene import COLOUR_NAMES, COLOURS, SHAPES, Scene, Thing
from build_scripts.demo_model.train.textures import TextureKind, texture_numbers

SLOTS = 3  # shapes in a frame at most
BLOB = len(SHAPES)  # the renderer's own shape: an irregular textured blob, which no question calls a shape
SLOT_VALUES = 13  # cx, cy, half width, half height, cos, sin, visible, softness, outline, r, g, b, texture in the fill
BACK_VALUES = 22  # base, slopes in x and y, texture strength (3 each); brightness, noise, block noise, seed; affine (6)
PRESENT = len(COLOUR_NAMES) * len(SHAPES)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """T frames of one video, before rendering."""

    slots: Array  # [T, SLOTS, SLOT_VALUES]
    shapes: NDArray[np.int64]  # [T, SLOTS] number of the shape
    back: Array  # [T, BACK_VALUES]
    texture: NDArray[np.int64]  # [T] number in the bank
    present: Array  # [T, PRESENT] 1 where this colour and shape are to be seen
    places: Array  # [T, colours, 3]: x, y, 3 x radius of the shape of this colour
    placed: Array  # [T, colours] 1 where there is one


def frame_times(frames: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Times of the frames that the model's own sampling takes from a video of some length: [frames], 0..1."""
    last = int(math.exp(random.uniform(math.log(20), math.log(900)))) - 1
    segment = last / frames
    return np.array([int(segment / 2 + np.round(segment * i)) for i in range(frames)]) / last


def draw(scene: Scene, times: NDArray[np.float64]) -> Drawing:
    """Describe the frames of a scene at times [T]; everything random follows from ``scene.backdrop``."""
    random = np.random.default_rng(scene.backdrop)
    frames = len(times)
    slots = np.zeros((frames, SLOTS, SLOT_VALUES), np.float32)
    slots[:, :, 2:4] = slots[:, :, 7] = 1  # no division by zero in unused slots
    shapes = np.zeros((frames, SLOTS), np.int64)
    present = np.zeros((frames, PRESENT), np.float32)
    places = np.zeros((frames, len(COLOUR_NAMES), 3), np.float32)
    placed = np.zeros((frames, len(COLOUR_NAMES)), np.float32)
    softness = random.uniform(0.7, 4)  # pixels from full colour to none
    for slot, thing in enumerate(scene.things):
        shapes[:, slot] = SHAPES.index(thing.shape)
        slots[:, slot] = _slot(thing, scene.width_factor, times, softness, random)
        _mark(thing, slots[:, slot], times, present, places, placed)
    if not scene.things and random.random() < 0.5:
        for slot in range(int(random.integers(1, SLOTS + 1))):
            shapes[:, slot] = BLOB
            slots[:, slot] = _blob(scene.width_factor, times, random)
    back, texture = _backdrop(scene, times, random)
    return Drawing(slots, shapes, back, np.full(frames, texture), present, places, placed)


def _slot(thing: Thing, width_factor: float, times: NDArray[np.float64], softness: float, random: np.random.Generator) -> Array:
    values = np.zeros((len(times), SLOT_VALUES), np.float32)
    sizes = thing.sizes(times)
    values[:, 0:2] = thing.centres(times)
    values[:, 2] = sizes * math.sqrt(width_factor)
    values[:, 3] = sizes / math.sqrt(width_factor)
    values[:, 4:6] = math.cos(thing.angle), math.sin(thing.angle)
    values[:, 6] = thing.visible(times)
    values[:, 7] = softness / (448 * sizes)
    values[:, 8] = thing.outline
    jitter = random.uniform(-0.06, 0.06, 3)
    rgb = np.array(COLOURS[thing.colour]) / 255
    values[:, 9:12] = np.clip(rgb + jitter, 0, 1)
    if thing.to_colour is not None:
        after = np.clip(np.array(COLOURS[thing.to_colour]) / 255 + jitter, 0, 1)
        values[thing.happened(times), 9:12] = after
    return values


def _blob(width_factor: float, times: NDArray[np.float64], random: np.random.Generator) -> Array:
    values = np.zeros((len(times), SLOT_VALUES), np.float32)
    first, last = random.uniform(0, 1, (2, 2))
    still = random.random() < 0.3
    share = np.zeros(len(times)) if still else times
    values[:, 0:2] = first * (1 - share)[:, None] + last * share[:, None]
    radius = random.uniform(0.06, 0.35)
    stretch = random.uniform(0.6, 1.6) * math.sqrt(width_factor)
    values[:, 2], values[:, 3] = radius * stretch, radius / stretch
    angle = random.uniform(0, 2 * math.pi)
    values[:, 4:6] = math.cos(angle), math.sin(angle)
    values[:, 6] = 1
    values[:, 7] = random.uniform(4, 60) / (448 * radius)
    values[:, 8] = random.random()
    values[:, 9:12] = random.uniform(0, 1, 3) * 0.6 + 0.2
    values[:, 12] = random.uniform(0.1, 0.3)
    return values


def _mark(thing: Thing, slot: Array, times: NDArray[np.float64], present: Array, places: Array, placed: Array) -> None:
    visible, after = thing.visible(times), thing.happened(times)
    for colour, when in ((thing.colour, visible & ~(after & (thing.to_colour is not None))), (thing.to_colour, visible & after)):
        if colour is None:
            continue
        number = COLOUR_NAMES.index(colour)
        present[when, number * len(SHAPES) + SHAPES.index(thing.shape)] = 1
        places[when, number, 0:2] = slot[when, 0:2]
        places[when, number, 2] = 3 * np.sqrt(slot[when, 2] * slot[when, 3])
        placed[when, number] = 1


def _backdrop(scene: Scene, times: NDArray[np.float64], random: np.random.Generator) -> tuple[Array, int]:
    shapes = bool(scene.things)
    back = np.zeros((len(times), BACK_VALUES), np.float32)
    base = _far_from([COLOURS[name] for name in sorted(scene.colours)], random)
    kinds: list[TextureKind | None] = [None, "smooth", "stripes", "fractal", "photo"]
    kind = random.choice(5, p=[0.4, 0.18, 0.12, 0.12, 0.18] if shapes else [0.14, 0.08, 0.08, 0.2, 0.5])
    if not shapes and random.random() < 0.5:
        base = np.full(3, random.uniform(0.25, 0.65))  # a photograph's own colours
    back[:, 0:3] = base
    if random.random() < 0.5:
        back[:, 3:9] = random.uniform(-0.18, 0.18, 6)
    name = kinds[kind]
    texture = 0
    if name is not None:
        texture = texture_numbers(name, random)
        strongest = {"smooth": 0.09, "stripes": 0.07, "fractal": 0.1, "photo": 0.14}[name]
        strength = random.uniform(0.02, strongest) if shapes else random.uniform(0.08, 0.3)
        tint = random.uniform(0.75, 1.25, 3) if random.random() < 0.8 else np.full(3, 1.0)
        back[:, 9:12] = strength * tint
    back[:, 12] = random.uniform(0.85, 1.1)
    back[:, 13] = random.uniform(0, 0.045)
    back[:, 14] = random.uniform(0, 0.03)
    back[:, 15] = random.random()  # which grain
    back[:, 16:22] = _camera(times, still=random.random() < (0.6 if shapes else 0.25), random=random)
    return back, texture


def _camera(times: NDArray[np.float64], *, still: bool, random: np.random.Generator) -> Array:
    """An affine map from frame to texture for each time: [T, 6], row by row; units of the whole frame and texture."""
    zoom = math.exp(random.uniform(math.log(0.35), math.log(1.1)))
    angle = random.uniform(-0.2, 0.2)
    centre = random.uniform(0.2, 0.8, 2)
    drift = random.uniform(-0.4, 0.4, 2)
    zooming = random.uniform(-0.4, 0.4)
    t = np.zeros(len(times)) if still else times - 0.5
    scale = zoom * np.exp(zooming * t)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = centre[0] + drift[0] * t, centre[1] + drift[1] * t
    columns = [cos, -sin, x - (cos - sin) / 2, sin, cos, y - (sin + cos) / 2]
    stacked: NDArray[np.float32] = np.stack(columns, axis=1).astype(np.float32)
    return stacked


def _far_from(colours: list[tuple[int, int, int]], random: np.random.Generator) -> NDArray[np.float64]:
    """A background colour that no shape's colour is lost on: the first at L1 distance 0.75 from all, else the best."""
    tries = random.uniform(0.03, 0.97, (60, 3))
    if not colours:
        return np.asarray(tries[0])
    distance = np.abs(tries[:, None] - np.array(colours) / 255).sum(2).min(1)  # [tries]
    good = np.flatnonzero(distance > 0.75)
    return np.asarray(tries[good[0] if len(good) else distance.argmax()])
