"""What happens in a synthetic video: up to three coloured shapes, each with one event, on some background.

A scene knows no pixels and no words. Coordinates are shares of the square frame that the model sees; a video's real
aspect ratio shows only in ``width_factor``, because every frame is squeezed to a square. Time runs from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Shape = Literal["circle", "square", "triangle", "star", "cross"]
Event = Literal["still", "left", "right", "up", "down", "grow", "shrink", "appear", "vanish", "recolour"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
MOVES: tuple[Event, ...] = ("left", "right", "up", "down")
SUDDEN: tuple[Event, ...] = ("appear", "vanish", "recolour")  # these have a moment, and so an order
STEPS: dict[Event, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 165, 60),
    "blue": (40, 80, 225),
    "purple": (145, 50, 180),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
COLOUR_NAMES = tuple(COLOURS)
# When an event may happen so that the part of the video is beyond doubt, also with 4 sampled frames (at 1/8, 3/8, ...).
PARTS = {"beginning": (0.16, 0.30), "middle": (0.42, 0.58), "end": (0.70, 0.84)}
_FREE_EVENTS: dict[Event, float] = {
    **dict.fromkeys(MOVES, 0.125),
    "still": 0.1,
    "grow": 0.09,
    "shrink": 0.08,
    "appear": 0.08,
    "vanish": 0.08,
    "recolour": 0.07,
}
_EMPTY, _ONE, _TWO = 0.10, 0.33, 0.43  # shares of scenes with 0, 1 and 2 shapes; the rest has 3
_TRIES = 40


@dataclass(frozen=True)
class Thing:
    """One shape and what it does. Positions are centres; radii are geometric means of half width and half height."""

    shape: Shape
    colour: str
    event: Event
    start: tuple[float, float]
    end: tuple[float, float]
    radii: tuple[float, float]
    window: tuple[float, float]  # of moving and growing; a sudden event happens at its first number
    to_colour: str | None = None
    angle: float = 0.0  # radians
    outline: float = 0.5  # 0..1: which of the drawings of its shape (arm widths and the like)

    def progress(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far a gradual event is at each time [T], 0..1."""
        first, last = self.window
        return np.clip((times - first) / max(last - first, 1e-9), 0, 1)

    def centres(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centres [T, 2] at times [T]."""
        share = self.progress(times)[:, None]
        centres: NDArray[np.float64] = np.asarray(self.start) * (1 - share) + np.asarray(self.end) * share
        return centres

    def sizes(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radii [T] at times [T]."""
        share = self.progress(times)
        return self.radii[0] * (1 - share) + self.radii[1] * share

    def happened(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether a sudden event is over, at times [T]."""
        return times >= self.window[0]

    def visible(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether it is to be seen, at times [T]."""
        if self.event == "appear":
            return self.happened(times)
        return ~self.happened(times) if self.event == "vanish" else np.ones(len(times), dtype=bool)

    @property
    def part(self) -> str | None:
        """In which third of the video a sudden event happens."""
        if self.event not in SUDDEN:
            return None
        return next((name for name, (low, high) in PARTS.items() if low <= self.window[0] <= high), None)


@dataclass(frozen=True)
class Scene:
    """A whole video's content; ``backdrop`` is the renderer's seed for everything that is no shape."""

    things: tuple[Thing, ...]
    width_factor: float = 1.0  # half width over half height of a squeezed circle: 9/16 for a 16:9 video
    backdrop: int = 0

    @property
    def colours(self) -> frozenset[str]:
        """All colours that a shape ever has."""
        return frozenset(c for thing in self.things for c in (thing.colour, thing.to_colour) if c)

    @property
    def in_time(self) -> list[Thing]:
        """The shapes with a sudden event, by its time."""
        return sorted((thing for thing in self.things if thing.event in SUDDEN), key=lambda thing: thing.window[0])

    @property
    def ordered(self) -> bool:
        """Nothing but sudden events, each in its own part: what comes first is beyond doubt."""
        parts = [thing.part for thing in self.in_time]
        return all(thing.event in (*SUDDEN, "still") for thing in self.things) and len(set(parts)) == len(parts)

    @property
    def same_event(self) -> list[list[Thing]]:
        """Groups of two or more things with the same sudden event in different parts, by time."""
        groups = [[thing for thing in self.in_time if thing.event == event] for event in SUDDEN]
        return [group for group in groups if len(group) > 1 and len({thing.part for thing in group}) == len(group)]

    @property
    def unique_events(self) -> list[Thing]:
        """Things that alone do what they do; "stays still" only beside things that go places."""
        events = [thing.event for thing in self.things]
        alone = [thing for thing in self.things if events.count(thing.event) == 1]
        return [t for t in alone if t.event != "still" or all(other.event in MOVES for other in self.things if other is not t)]

    @property
    def known_by_shape(self) -> list[Thing]:
        """Things whose colour can be asked for: one of their shape, of one colour."""
        return [thing for thing in self.things if thing.to_colour is None and self.alone_in_shape(thing)]

    def alone_in_shape(self, thing: Thing) -> bool:
        """Whether no other thing has its shape."""
        return sum(other.shape == thing.shape for other in self.things) == 1


def sample_scene(
    random: np.random.Generator, *, shapes: int | None = None, width_factor: float | None = None, timed: float = 0.0
) -> Scene:
    """Draw a scene.

    Args:
        random: The source of all choices.
        shapes: Their number, if it is fixed.
        width_factor: The shape of the frame, if it is fixed.
        timed: At least this share of the scenes has sudden events only, each in a part of the video of its own.
    """
    count = int(random.choice(4, p=[_EMPTY, _ONE, _TWO, 1 - _EMPTY - _ONE - _TWO])) if shapes is None else shapes
    scene = Scene((), width_factor or _width_factor(random), int(random.integers(2**31)))
    if not count:
        return scene
    events = _events(random, count, timed)
    colours = list(random.permutation(COLOUR_NAMES))
    things: list[Thing] = []
    for event, part in events:
        for _ in range(_TRIES):
            thing = _thing(random, event, part, colours, crowd=count, width_factor=scene.width_factor)
            if all(_apart(thing, other) for other in things):
                things.append(thing)
                colours = [c for c in colours if c not in (thing.colour, thing.to_colour)]
                break
    return replace(scene, things=tuple(things))


def _width_factor(random: np.random.Generator) -> float:
    common = [9 / 16, 3 / 4, 1.0, 4 / 3, 16 / 9]
    if random.random() < 0.7:
        return float(random.choice(common, p=[0.4, 0.12, 0.18, 0.08, 0.22]))
    return math.exp(random.uniform(math.log(0.5), math.log(1.9)))


def _events(random: np.random.Generator, count: int, timed: float) -> list[tuple[Event, str]]:
    """An event for each shape, and the part of the video for the sudden ones."""
    parts = [str(part) for part in random.permutation(list(PARTS))]
    if random.random() < max(timed, 0.36 if count > 1 else 0.2):  # a scene with an order: each event in a part of its own
        same = random.random() < 0.6
        kinds = random.choice(SUDDEN, size=count, p=[0.4, 0.4, 0.2])
        return [(kinds[0] if same else kind, part) for kind, part in zip(kinds, parts, strict=False)]
    names = list(_FREE_EVENTS)
    drawn = random.choice(names, size=count, p=list(_FREE_EVENTS.values()))
    return [(event, part) for event, part in zip(drawn, parts, strict=False)]


def _thing(random: np.random.Generator, event: Event, part: str, colours: list[str], *, crowd: int, width_factor: float) -> Thing:
    event = next(name for name in get_args(Event) if name == event)  # numpy's strings are of another type
    largest = {1: 0.2, 2: 0.18, 3: 0.14}[crowd]
    radius = random.uniform(0.062, largest)
    radii = (radius, radius)
    window = (random.uniform(0, 0.3), random.uniform(0.7, 1))
    if event in ("grow", "shrink"):
        small = random.uniform(0.055, largest / 1.8)
        large = small * random.uniform(1.8, min(2.6, max(1.81, 0.24 / small)))
        radii = (small, large) if event == "grow" else (large, small)
    elif event in SUDDEN:
        window = (random.uniform(*PARTS[part]),) * 2
    reach = np.array([math.sqrt(width_factor), 1 / math.sqrt(width_factor)]) * max(radii)  # half width, half height
    margin = np.minimum(reach * random.uniform(0.8, 1.05), 0.3)
    start = random.uniform(margin, 1 - margin)
    end = start
    if event in MOVES:
        axis = 0 if event in ("left", "right") else 1
        room = 1 - 2 * margin[axis]
        length = random.uniform(min(0.3, room), min(0.75, room))
        low = random.uniform(margin[axis], 1 - margin[axis] - length)
        forward = event in ("right", "down")
        start, end = start.copy(), start.copy()
        start[axis], end[axis] = (low, low + length) if forward else (low + length, low)
        other = 1 - axis
        end[other] = np.clip(start[other] + random.uniform(-0.06, 0.06), margin[other], 1 - margin[other])
    return Thing(
        shape=SHAPES[random.integers(len(SHAPES))],
        colour=str(colours[0]),
        event=event,
        start=(float(start[0]), float(start[1])),
        end=(float(end[0]), float(end[1])),
        radii=radii,
        window=window,
        to_colour=str(colours[1]) if event == "recolour" else None,
        angle=random.uniform(-0.2, 0.2),
        outline=random.random(),
    )


_TIMES = np.linspace(0, 1, 17)


def _apart(one: Thing, other: Thing) -> bool:
    """No touching at any time, as far as circles around both tell; hidden shapes count as present."""
    distance = np.linalg.norm(one.centres(_TIMES) - other.centres(_TIMES), axis=1)
    return bool((distance > 1.3 * (one.sizes(_TIMES) + other.sizes(_TIMES))).all())
