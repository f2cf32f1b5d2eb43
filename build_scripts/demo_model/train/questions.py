"""Conversations about a scene: which questions it allows, and how often each is asked."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from build_scripts.demo_model.train.answers import ABOUT_SCENES, Answer, fixed, words_without_shapes
from build_scripts.demo_model.train.naming import Names
from build_scripts.demo_model.train.phrasing import SMALL_TALK, fixed_answer, phrase, unknown_words
from build_scripts.demo_model.train.scene import Scene, Thing
from build_scripts.demo_model.train.words import LANGUAGES, Language

# How often each topic is asked, where the scene allows it.
_WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "direction": 1.4,
    "count": 0.7,
    "objects": 0.9,
    "describe": 1.5,
    "first": 0.9,
    "last": 0.9,
    "first_which": 0.9,
    "last_which": 0.9,
    "part_when": 1.4,
    "part_what": 1.0,
    "change": 1.2,
    "which": 0.9,
    "is_there": 0.8,
    "does_it": 0.9,
    "is_colour": 0.5,
    "are_there": 0.4,
    "absent": 0.6,
    "unknown": 0.6,
    "small_talk": 0.25,
}
_ABOUT_A_THING = ("colour", "shape", "direction", "part_when", "change", "does_it", "is_colour")
_KINDS = {
    "objects": "objects",
    "describe": "description",
    "first": "order",
    "last": "order",
    "first_which": "order",
    "last_which": "order",
    "part_when": "part",
    "part_what": "part",
    "which": "change",
    "is_there": "yesno",
    "does_it": "yesno",
    "is_colour": "yesno",
    "are_there": "yesno",
    "small_talk": "smalltalk",
}


@dataclass(frozen=True)
class Turn:
    """A question and its answer. An answer is right if it contains an ``accepted`` form and no ``rejected`` one."""

    kind: str
    language: Language
    question: str
    answer: str
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    about: Thing | None = None  # what "it" means in the next question


@dataclass(frozen=True)
class Asker:
    """Asks about one scene.

    Args:
        scene: None for a conversation without a video.
        random: The source of all choices.
        held_out: Take the phrasings that training never sees.
        video: 1 or 2, where there are two videos and the question must say which it means.
        emphasis: Topics to ask more often than usual, with the factor.
    """

    scene: Scene | None
    random: random.Random
    held_out: bool = False
    video: int | None = None
    emphasis: Mapping[str, float] = field(default_factory=dict)

    def conversation(self, turns: int, language: Language) -> list[Turn]:
        """Several turns; later ones may say "it" and may switch the language."""
        asked: list[Turn] = []
        for _ in range(turns):
            if asked and self.random.random() < 0.1:
                language = LANGUAGES[1 - LANGUAGES.index(language)]
            about = asked[-1].about if asked and self.random.random() < 0.6 else None
            asked.append(self.ask(language, about=about))
        return asked

    def ask(self, language: Language, *, topic: str | None = None, about: Thing | None = None) -> Turn:
        """One question; ``about`` is a thing to be called "it"."""
        if topic is None:
            topics = self.topics(about)
            topic = self.random.choices(topics, [_WEIGHTS[name] * self.emphasis.get(name, 1.0) for name in topics])[0]
        kind, answer = _KINDS.get(topic, topic), self._answer(topic, language, about)
        if topic in ABOUT_SCENES and not self._things:
            kind = "no_video" if self.scene is None else "empty"
        question = phrase(language, answer.template or topic, answer.words, self.random, held_out=self.held_out, video=self.video)
        return Turn(kind, language, question, answer.reply, answer.accepted, answer.rejected, answer.about)

    def _answer(self, topic: str, language: Language, about: Thing | None) -> Answer:
        if topic == "small_talk":
            said = self.random.choice(SMALL_TALK)
            return fixed(fixed_answer(language, said), {}, template=said)
        if topic == "unknown":
            words = unknown_words(language, self.random, held_out=self.held_out)
            return fixed(fixed_answer(language, "unknown"), words)
        names = Names(self.scene or Scene(()), language, self.random)
        if self._things:
            return ABOUT_SCENES[topic](names, about)
        return fixed(fixed_answer(language, "no_video" if self.scene is None else "empty"), words_without_shapes(names))

    def topics(self, about: Thing | None = None) -> list[str]:
        """What can be asked about this scene (or about one thing of it)."""
        scene = self.scene
        if scene is None or not scene.things:
            never = ("is_there", "are_there", "absent")
            return [topic for topic in _WEIGHTS if topic not in never]
        possible = ["count", "objects", "describe", "is_there", "are_there", "absent", "unknown", "small_talk"]
        possible += ["direction", "change", "does_it"]
        if scene.known_by_shape:
            possible += ["colour", "is_colour"]
        possible.append("shape")
        if any(thing.part for thing in scene.things):
            possible.append("part_when")
            if scene.ordered:
                possible += ["part_what", "first", "last"]
            if scene.same_event:
                possible += ["first_which", "last_which"]
        if scene.unique_events:
            possible.append("which")
        if about is not None:
            possible = [topic for topic in possible if topic in _ABOUT_A_THING and _fits(topic, about)]
        return possible

    @property
    def _things(self) -> tuple[Thing, ...]:
        return self.scene.things if self.scene else ()


def _fits(topic: str, thing: Thing) -> bool:
    if topic in ("colour", "is_colour"):
        return thing.to_colour is None
    return topic != "part_when" or thing.part is not None
