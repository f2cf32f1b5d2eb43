"""For each topic: the words of a question about a scene, the one answer, what else is right, and what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from build_scripts.demo_model.train.naming import Names
from build_scripts.demo_model.train.scene import COLOUR_NAMES, MOVES, PARTS, SHAPES, SUDDEN, Event, Thing
from build_scripts.demo_model.train.words import (
    COLOUR_WORDS,
    NUMBERS,
    PART_ANSWERS,
    PART_WORDS,
    SHAPE_NOUNS,
    Language,
    motion,
    noun,
    sentence,
    verb,
    with_article,
)

_DIRECTION_WORDS: dict[Language, dict[str, str]] = {
    "en": {"left": "left", "right": "right", "up": "up", "down": "down", "still": "not move"},
    "zh": {"left": "左", "right": "右", "up": "上", "down": "下", "still": "没有移动"},
}
_PART_STEMS: dict[Language, dict[str, str]] = {
    "en": {part: part for part in PARTS},
    "zh": {"beginning": "开头", "middle": "中间", "end": "结尾"},
}
_YES_NO: dict[Language, tuple[str, str]] = {"en": ("No.", "Yes."), "zh": ("不是。", "是的。")}
_THERE_IS: dict[Language, tuple[str, str]] = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}


@dataclass(frozen=True)
class Answer:
    """What a topic makes of a scene."""

    words: dict[str, str]  # for the gaps of a template
    reply: str
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    about: Thing | None = None  # what "it" means in the next question
    template: str = ""  # the topic whose templates are taken, where it is another


def _colour(names: Names, about: Thing | None) -> Answer:
    thing = about or names.random.choice(names.scene.known_by_shape)
    name = COLOUR_WORDS[names.language][thing.colour]
    reply = f"It is {name}." if names.language == "en" else f"它是{name}的。"
    stems = _colour_stems(names.language)
    others = tuple(stem for colour, stem in stems.items() if colour != thing.colour)
    return Answer({"ref": names.ref_without_colour(thing, about)}, reply, (stems[thing.colour],), others, thing)


def _shape(names: Names, about: Thing | None) -> Answer:
    thing = about or names.random.choice(names.scene.things)
    nouns = SHAPE_NOUNS[names.language]
    name = nouns[thing.shape][0]
    reply = f"It is {with_article(name)}." if names.language == "en" else f"它是{name}。"
    others = tuple(nouns[shape][0] for shape in SHAPES if shape != thing.shape)
    ref = names.it() if about else names.ref_without_shape(thing)
    return Answer({"ref": ref}, reply, nouns[thing.shape], others, thing)


def _direction(names: Names, about: Thing | None) -> Answer:
    things = names.scene.things
    moving = [thing for thing in things if thing.event in (*MOVES, "still")]
    thing = about or names.random.choice(moving if moving and names.random.random() < 0.9 else things)
    moves = motion(names.language, thing)
    words = _DIRECTION_WORDS[names.language]
    right = words[thing.event if thing.event in MOVES else "still"]
    others = tuple(word for word in words.values() if word != right)
    return Answer({"ref": names.ref(thing, about)}, _of_it(names, moves), (right,), others, thing)


def _count(names: Names, _: Thing | None) -> Answer:
    count = len(names.scene.things)
    numbers = NUMBERS[names.language]
    word = numbers[count]
    if names.language == "en":
        reply = "There is one shape." if count == 1 else f"There are {word} shapes."
        return Answer(names.nouns(), reply, (word, str(count)), tuple(w for i, w in enumerate(numbers) if i != count))
    others = tuple(f"{w}个" for i, w in enumerate(numbers) if i != count)
    return Answer(names.nouns(), f"有{word}个图形。", (f"{word}个", f"{count}个"), others)


def _objects(names: Names, _: Thing | None) -> Answer:
    listed = [noun(names.language, thing.colour, thing.shape) for thing in _by_colour(names.scene.things)]
    forms = tuple(_listed(names.language, list(order)) for order in itertools.permutations(listed))
    reply = forms[0]
    return Answer(names.nouns(), reply[0].upper() + reply[1:], tuple(_bare(form) for form in forms))


def _describe(names: Names, _: Thing | None) -> Answer:
    sentences = [sentence(names.language, thing, article="a") for thing in _by_time(names.scene.things)]
    forms = tuple(_bare(_joined(names.language, order)) for order in itertools.permutations(sentences))
    return Answer({}, _joined(names.language, sentences), forms)


def _first(names: Names, _: Thing | None) -> Answer:
    return _told(names, names.scene.in_time[0], {})


def _last(names: Names, _: Thing | None) -> Answer:
    return _told(names, names.scene.in_time[-1], {})


def _first_which(names: Names, _: Thing | None) -> Answer:
    thing = names.random.choice(names.scene.same_event)[0]
    return _told(names, thing, names.verbs(thing.event))


def _last_which(names: Names, _: Thing | None) -> Answer:
    thing = names.random.choice(names.scene.same_event)[-1]
    return _told(names, thing, names.verbs(thing.event))


def _part_when(names: Names, about: Thing | None) -> Answer:
    thing, part = _timed(names, about)
    words = {"ref": names.ref(thing, about), **names.verbs(thing.event)}
    stems = _PART_STEMS[names.language]
    others = tuple(stem for other, stem in stems.items() if other != part)
    return Answer(words, PART_ANSWERS[names.language][part], (stems[part],), others, thing)


def _part_what(names: Names, _: Thing | None) -> Answer:
    thing, part = _timed(names, None)
    return _told(names, thing, {"part": names.random.choice(PART_WORDS[names.language][part])})


def _change(names: Names, about: Thing | None) -> Answer:
    thing = about or names.random.choice(names.scene.things)
    said = verb(names.language, thing)
    return Answer({"ref": names.ref(thing, about)}, _of_it(names, said), (said,), (), thing)


def _which(names: Names, _: Thing | None) -> Answer:
    thing = names.random.choice(names.scene.unique_events)
    return _told(names, thing, names.verbs(thing.event))


def _is_there(names: Names, _: Thing | None) -> Answer:
    true = names.random.random() < 0.5
    things = names.scene.things
    thing = names.random.choice(things)
    if names.random.random() < 0.4:
        shapes = [thing.shape] if true else [s for s in SHAPES if all(s != other.shape for other in things)]
        name = names.shape_noun(names.random.choice(shapes))
    else:
        name = names.coloured(thing.colour, thing.shape) if true else names.coloured(*names.absent_pair())
    name = with_article(name) if names.language == "en" else name
    return _yes_no(names, {"thing": name}, true, _THERE_IS)


def _does_it(names: Names, about: Thing | None) -> Answer:
    thing = about or names.random.choice(names.scene.things)
    true = names.random.random() < 0.5
    moves = thing.event in MOVES
    if names.random.random() < 0.25 and thing.event != "still":  # movement as such
        words = {"does": "move", "verbs": "moves"} if names.language == "en" else {"does": "移动"}
        return _yes_no(names, {"ref": names.ref(thing, about), **words}, moves, _YES_NO, thing)
    others: list[Event] = [event for event in (*MOVES, "grow", "shrink", *SUDDEN) if event != thing.event]
    if moves and names.random.random() < 0.6:
        others = [event for event in (*MOVES, "still") if event != thing.event]
    event = thing.event if true else names.random.choice(others)
    return _yes_no(names, {"ref": names.ref(thing, about), **names.verbs(event)}, true, _YES_NO, thing)


def _is_colour(names: Names, about: Thing | None) -> Answer:
    thing = about or names.random.choice(names.scene.known_by_shape)
    true = names.random.random() < 0.5
    colour = thing.colour if true else names.random.choice([c for c in COLOUR_NAMES if c != thing.colour])
    words = {"ref": names.ref_without_colour(thing, about), "colour": COLOUR_WORDS[names.language][colour]}
    return _yes_no(names, words, true, _YES_NO, thing)


def _are_there(names: Names, _: Thing | None) -> Answer:
    count = len(names.scene.things)
    true = count > 1 and names.random.random() < 0.5
    claimed = count if true else names.random.choice([number for number in (2, 3) if number != count])
    things = names.nouns()["things"]
    number = NUMBERS[names.language][claimed]
    return _yes_no(names, {"number": f"{number} {things}" if names.language == "en" else f"{number}个{things}"}, true, _YES_NO)


def _absent(names: Names, _: Thing | None) -> Answer:
    colour, shape = names.absent_pair()
    name = noun(names.language, colour, shape)
    template = names.random.choice(["direction", "change", "part_when"])
    asked = names.coloured(colour, shape)
    words = {"ref": names.the(asked), **names.verbs(names.random.choice(SUDDEN))}
    reply = f"There is no {name}." if names.language == "en" else f"没有{name}。"
    return Answer(words, reply, (_bare(reply),), (), template=template)


ABOUT_SCENES: dict[str, Callable[[Names, Thing | None], Answer]] = {
    "colour": _colour,
    "shape": _shape,
    "direction": _direction,
    "count": _count,
    "objects": _objects,
    "describe": _describe,
    "first": _first,
    "last": _last,
    "first_which": _first_which,
    "last_which": _last_which,
    "part_when": _part_when,
    "part_what": _part_what,
    "change": _change,
    "which": _which,
    "is_there": _is_there,
    "does_it": _does_it,
    "is_colour": _is_colour,
    "are_there": _are_there,
    "absent": _absent,
}


def fixed(reply: str, words: dict[str, str], *, template: str = "") -> Answer:
    """An answer that no scene changes."""
    return Answer(words, reply, (_bare(reply),), template=template)


def words_without_shapes(names: Names) -> dict[str, str]:
    """Words for any question that takes shapes for granted, where there are none."""
    language, source = names.language, names.random
    ref = names.coloured(source.choice(COLOUR_NAMES), source.choice(SHAPES))
    if source.random() < 0.4:
        ref = names.shape_noun(source.choice(SHAPES)) if source.random() < 0.7 else names.generic()
    return {
        "ref": names.the(ref),
        "colour": COLOUR_WORDS[language][source.choice(COLOUR_NAMES)],
        "part": source.choice(PART_WORDS[language][source.choice(list(PARTS))]),
        **names.verbs(source.choice((*MOVES, "grow", "shrink", *SUDDEN))),
    }


def _timed(names: Names, about: Thing | None) -> tuple[Thing, str]:
    """A thing with a sudden event, and the part of the video in which it is."""
    candidates = [(thing, thing.part) for thing in names.scene.things if thing.part]
    if about is None:
        return names.random.choice(candidates)
    return next((thing, part) for thing, part in candidates if thing == about)


def _told(names: Names, thing: Thing, words: dict[str, str]) -> Answer:
    """An answer that names the thing and what it does."""
    reply = sentence(names.language, thing)
    others = tuple(noun(names.language, other.colour, other.shape) for other in names.scene.things if other is not thing)
    return Answer({**names.nouns(), **words}, reply, (_bare(reply),), others, thing)


def _yes_no(
    names: Names,
    words: dict[str, str],
    true: bool,
    replies: dict[Language, tuple[str, str]],
    about: Thing | None = None,
) -> Answer:
    reply = replies[names.language][true]
    if names.language == "en":
        accepted, rejected = ("yes", "no")[:: 1 if true else -1]
        return Answer(words, reply, (accepted,), (rejected,), about)
    if true:
        return Answer(words, reply, ("是", "有"), ("不", "没"), about)
    return Answer(words, reply, ("不是", "没有"), (), about)


def _of_it(names: Names, said: str) -> str:
    return f"It {said}." if names.language == "en" else f"它{said}。"


def _by_colour(things: tuple[Thing, ...]) -> list[Thing]:
    return sorted(things, key=lambda thing: COLOUR_NAMES.index(thing.colour))


def _by_time(things: tuple[Thing, ...]) -> list[Thing]:
    """The order of descriptions: sudden events by their time, after everything that lasts."""
    return sorted(_by_colour(things), key=lambda thing: thing.window[0] if thing.event in SUDDEN else 0.0)


def _listed(language: Language, names: list[str]) -> str:
    if language == "zh":
        return ("、".join(names[:-1]) + "和" if len(names) > 1 else "") + names[-1] + "。"
    names = [with_article(name) for name in names]
    return (", ".join(names[:-1]) + " and " if len(names) > 1 else "") + names[-1] + "."


def _joined(language: Language, sentences: list[str] | tuple[str, ...]) -> str:
    return (" " if language == "en" else "").join(sentences)


@cache
def _colour_stems(language: Language) -> dict[str, str]:
    return {name: word.removesuffix("色") for name, word in COLOUR_WORDS[language].items()}


def _bare(text: str) -> str:
    return text.rstrip(".。!！")
