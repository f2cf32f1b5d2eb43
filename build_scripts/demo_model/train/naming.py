"""What a question calls the things of a scene: "the red circle", "the blue one", "it", a shape that is not there."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from build_scripts.demo_model.train.scene import COLOUR_NAMES, SHAPES, Event, Scene, Thing
from build_scripts.demo_model.train.words import COLOUR_WORDS, GENERIC_NOUNS, PLAIN_VERBS, SHAPE_NOUNS, THIRD_PERSON_EN, Language


@dataclass(frozen=True)
class Names:
    """Names in one language; ``about`` is everywhere the thing to be called "it", if any.

    Args:
        scene: What is to be seen.
        language: Of the names.
        random: The source of all choices.
    """

    scene: Scene
    language: Language
    random: random.Random

    def ref(self, thing: Thing, about: Thing | None) -> str:
        """A thing by all that tells it from the others."""
        if about is not None:
            return self.it()
        way = self.random.random()
        if way < 0.55:
            return self.the(self.coloured(thing.colour, thing.shape))
        if way < 0.7:
            return self.ref_without_shape(thing)
        if way < 0.9 and self.scene.alone_in_shape(thing):
            return self.the(self.shape_noun(thing.shape))
        if len(self.scene.things) == 1:
            return self.the(self.generic())
        return self.the(self.coloured(thing.colour, thing.shape))

    def ref_without_colour(self, thing: Thing, about: Thing | None) -> str:
        """A thing by its shape."""
        if about is not None:
            return self.it()
        if len(self.scene.things) == 1 and self.random.random() < 0.3:
            return self.the(self.generic())
        return self.the(self.shape_noun(thing.shape))

    def ref_without_shape(self, thing: Thing) -> str:
        """A thing by its colour."""
        if len(self.scene.things) == 1 and self.random.random() < 0.3:
            return self.the(self.generic())
        generic, colour = self.generic(), COLOUR_WORDS[self.language][thing.colour]
        if self.language == "zh":
            return f"{colour}的{generic}" if self.random.random() < 0.7 else f"{colour}{generic}"
        return f"the {colour} {generic if self.random.random() < 0.85 else 'one'}"

    def absent_pair(self) -> tuple[str, str]:
        """A colour and a shape that are not there together; often one of the two is."""
        used = {(colour, t.shape) for t in self.scene.things for colour in (t.colour, t.to_colour)}
        pairs = [pair for pair in itertools.product(COLOUR_NAMES, SHAPES) if pair not in used]
        shapes = {thing.shape for thing in self.scene.things}
        near = [pair for pair in pairs if (pair[0] in self.scene.colours) != (pair[1] in shapes)]
        return self.random.choice(near if self.random.random() < 0.7 else pairs)

    def coloured(self, colour: str, shape: str) -> str:
        """A colour and any noun of a shape."""
        word, name = COLOUR_WORDS[self.language][colour], self.shape_noun(shape)
        if self.language == "en":
            return f"{word} {name}"
        return f"{word}的{name}" if self.random.random() < 0.4 else f"{word}{name}"

    def shape_noun(self, shape: str) -> str:
        """Any noun of a shape."""
        nouns = SHAPE_NOUNS[self.language][shape]
        return nouns[0] if self.random.random() < 0.5 else self.random.choice(nouns)

    def generic(self) -> str:
        """A noun for all shapes."""
        return self.random.choice(GENERIC_NOUNS[self.language])

    def nouns(self) -> dict[str, str]:
        """The same for the gaps ``noun`` and ``things``."""
        generic = self.generic()
        return {"noun": generic, "things": f"{generic}s" if self.language == "en" else generic}

    def verbs(self, event: Event) -> dict[str, str]:
        """An event for the gaps ``does`` and ``verbs``, with the nouns."""
        words = {"does": self.random.choice(PLAIN_VERBS[self.language][event]), **self.nouns()}
        if self.language == "en":
            words["verbs"] = self.random.choice(THIRD_PERSON_EN[event])
        return words

    def the(self, name: str) -> str:
        """The definite article, in a language that has one."""
        return f"the {name}" if self.language == "en" else name

    def it(self) -> str:
        """The pronoun."""
        return "it" if self.language == "en" else "它"
