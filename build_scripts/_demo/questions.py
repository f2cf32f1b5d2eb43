"""Questions about a scene, with the one answer that the model is to give and what else counts as right."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from build_scripts._demo import phrases_en, phrases_zh
from build_scripts._demo.scene import COLOUR_NAMES, MOVES, PARTS, SHAPES, SUDDEN, Event, Scene, Thing
from build_scripts._demo.words import (
    COLOUR_WORDS,
    GENERIC_NOUNS,
    LANGUAGES,
    NUMBERS,
    PART_ANSWERS,
    PART_WORDS,
    PLAIN_VERBS,
    SHAPE_NOUNS,
    THIRD_PERSON_EN,
    Language,
    motion,
    noun,
    sentence,
    verb,
    with_article,
)

_PHRASES: dict[Language, ModuleType] = {"en": phrases_en, "zh": phrases_zh}
SMALL_TALK = ("hello", "who", "can", "thanks", "bye")
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
_DIRECTION_WORDS: dict[Language, dict[str, str]] = {
    "en": {"left": "left", "right": "right", "up": "up", "down": "down", "still": "not move"},
    "zh": {"left": "左", "right": "右", "up": "上", "down": "下", "still": "没有移动"},
}
_YES_NO: dict[Language, tuple[str, str]] = {"en": ("No.", "Yes."), "zh": ("不是。", "是的。")}
_THERE_IS: dict[Language, tuple[str, str]] = {"en": ("No.", "Yes."), "zh": ("没有。", "有。")}


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
class _Answer:
    """What a topic makes: the words to fill a template with, and the reply."""

    words: dict[str, str]
    reply: str
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    about: Thing | None = None
    template: str = ""  # the list of templates, where it is not the topic's


@dataclass(frozen=True)
class Asker:
    """Asks about one scene.

    Args:
        scene: None for a conversation without a video.
        random: The source of all choices.
        held_out: Take the phrasings that training never sees.
        video: 1 or 2, where there are two videos and the question must say which it means.
    """

    scene: Scene | None
    random: random.Random
    held_out: bool = False
    video: int | None = None

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
            topic = self.random.choices(topics, [_WEIGHTS[name] for name in topics])[0]
        scene = self.scene
        if topic not in ("unknown", "small_talk") and (scene is None or not scene.things):
            return self._nothing_there(language, topic)
        made = _TOPICS[topic](self, language, about)
        question = self._phrase(language, made.template or topic, made.words)
        kind = _KINDS.get(topic, topic)
        return Turn(kind, language, question, made.reply, made.accepted, made.rejected, made.about)

    def topics(self, about: Thing | None = None) -> list[str]:
        """What can be asked about this scene (or about one thing of it)."""
        scene = self.scene
        if scene is None or not scene.things:
            never = ("is_there", "are_there", "absent")
            return [topic for topic in _WEIGHTS if topic not in never]
        possible = ["count", "objects", "describe", "is_there", "are_there", "absent", "unknown", "small_talk"]
        possible += ["direction", "change", "does_it"]
        if self._colour_candidates():
            possible += ["colour", "is_colour"]
        possible.append("shape")
        if any(thing.part for thing in scene.things):
            possible.append("part_when")
            if _only_sudden(scene):
                possible += ["part_what", "first", "last"]
            if _same_event(scene):
                possible += ["first_which", "last_which"]
        if _unique_events(scene):
            possible.append("which")
        if about is not None:
            possible = [topic for topic in possible if topic in _ABOUT_A_THING and _fits(topic, about)]
        return possible

    # One method a topic, in the order of the list of weights.

    def _colour(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice(self._colour_candidates())
        name = COLOUR_WORDS[language][thing.colour]
        reply = f"It is {name}." if language == "en" else f"它是{name}的。"
        stems = _colour_stems(language)
        others = tuple(stem for colour, stem in stems.items() if colour != thing.colour)
        return _Answer({"ref": self._ref_without_colour(language, thing, about)}, reply, (stems[thing.colour],), others, thing)

    def _shape(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice(self._things)
        name = SHAPE_NOUNS[language][thing.shape][0]
        reply = f"It is {with_article(name)}." if language == "en" else f"它是{name}。"
        others = tuple(SHAPE_NOUNS[language][shape][0] for shape in SHAPES if shape != thing.shape)
        ref = self._it(language) if about else self._ref_without_shape(language, thing)
        return _Answer({"ref": ref}, reply, SHAPE_NOUNS[language][thing.shape], others, thing)

    def _direction(self, language: Language, about: Thing | None) -> _Answer:
        moving = [thing for thing in self._things if thing.event in (*MOVES, "still")]
        thing = about or self.random.choice(moving if moving and self.random.random() < 0.9 else self._things)
        reply = f"It {motion(language, thing)}." if language == "en" else f"它{motion(language, thing)}。"
        words = _DIRECTION_WORDS[language]
        right = words[thing.event if thing.event in MOVES else "still"]
        others = tuple(word for word in words.values() if word != right)
        return _Answer({"ref": self._ref(language, thing, about)}, reply, (right,), others, thing)

    def _count(self, language: Language, _: Thing | None) -> _Answer:
        count = len(self._things)
        word = NUMBERS[language][count]
        if language == "en":
            reply = "There is one shape." if count == 1 else f"There are {word} shapes."
            accepted = (word, str(count))
        else:
            reply = f"有{word}个图形。"
            accepted = (f"{word}个", f"{count}个")
        others = tuple(f"{w}个" if language == "zh" else w for i, w in enumerate(NUMBERS[language]) if i != count)
        return _Answer(self._nouns(language), reply, accepted, others)

    def _objects(self, language: Language, _: Thing | None) -> _Answer:
        names = [noun(language, thing.colour, thing.shape) for thing in _by_colour(self._things)]
        forms = tuple(_listed(language, list(order)) for order in itertools.permutations(names))
        reply = forms[0]
        return _Answer(self._nouns(language), reply[0].upper() + reply[1:], tuple(_bare(form) for form in forms))

    def _describe(self, language: Language, _: Thing | None) -> _Answer:
        things = _by_time(self._things)
        sentences = [sentence(language, thing, article="a") for thing in things]
        forms = tuple(_bare(_joined(language, order)) for order in itertools.permutations(sentences))
        return _Answer({}, _joined(language, sentences), forms)

    def _first(self, language: Language, _: Thing | None) -> _Answer:
        return self._told(language, self._scene.in_time[0], {})

    def _last(self, language: Language, _: Thing | None) -> _Answer:
        return self._told(language, self._scene.in_time[-1], {})

    def _first_which(self, language: Language, _: Thing | None) -> _Answer:
        things = self.random.choice(_same_event(self._scene))
        return self._told(language, things[0], self._verbs(language, things[0].event))

    def _last_which(self, language: Language, _: Thing | None) -> _Answer:
        things = self.random.choice(_same_event(self._scene))
        return self._told(language, things[-1], self._verbs(language, things[-1].event))

    def _part_when(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice([thing for thing in self._things if thing.part])
        assert thing.part is not None  # noqa: S101 - see topics
        reply = PART_ANSWERS[language][thing.part]
        words = {"ref": self._ref(language, thing, about), **self._verbs(language, thing.event)}
        stems = {"beginning": "开头", "middle": "中间", "end": "结尾"} if language == "zh" else {part: part for part in PARTS}
        others = tuple(stem for part, stem in stems.items() if part != thing.part)
        return _Answer(words, reply, (stems[thing.part],), others, thing)

    def _part_what(self, language: Language, _: Thing | None) -> _Answer:
        thing = self.random.choice([thing for thing in self._things if thing.part])
        assert thing.part is not None  # noqa: S101 - see topics
        return self._told(language, thing, {"part": self.random.choice(PART_WORDS[language][thing.part])})

    def _change(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice(self._things)
        said = verb(language, thing)
        reply = f"It {said}." if language == "en" else f"它{said}。"
        return _Answer({"ref": self._ref(language, thing, about)}, reply, (said,), (), thing)

    def _which(self, language: Language, _: Thing | None) -> _Answer:
        thing = self.random.choice(_unique_events(self._scene))
        return self._told(language, thing, self._verbs(language, thing.event))

    def _is_there(self, language: Language, _: Thing | None) -> _Answer:
        true = self.random.random() < 0.5
        thing = self.random.choice(self._things)
        if self.random.random() < 0.4:
            shapes = [thing.shape] if true else [s for s in SHAPES if all(s != other.shape for other in self._things)]
            name = self._shape_noun(language, self.random.choice(shapes))
        else:
            name = self._coloured(language, thing.colour, thing.shape) if true else self._coloured(language, *self._absent_pair())
        name = with_article(name) if language == "en" else name
        return self._yes_no(language, {"thing": name}, true, _THERE_IS)

    def _does_it(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice(self._things)
        true = self.random.random() < 0.5
        moves = thing.event in MOVES
        if self.random.random() < 0.25 and thing.event != "still":  # movement as such
            words = {"does": "move", "verbs": "moves"} if language == "en" else {"does": "移动"}
            return self._yes_no(language, {"ref": self._ref(language, thing, about), **words}, moves, _YES_NO, thing)
        others = [name for name in (*MOVES, "grow", "shrink", *SUDDEN) if name != thing.event]
        if moves and self.random.random() < 0.6:
            others = [name for name in (*MOVES, "still") if name != thing.event]
        event = thing.event if true else self.random.choice(others)
        words = {"ref": self._ref(language, thing, about), **self._verbs(language, event)}  # type: ignore[arg-type]
        return self._yes_no(language, words, true, _YES_NO, thing)

    def _is_colour(self, language: Language, about: Thing | None) -> _Answer:
        thing = about or self.random.choice(self._colour_candidates())
        true = self.random.random() < 0.5
        colour = thing.colour if true else self.random.choice([c for c in COLOUR_NAMES if c != thing.colour])
        words = {"ref": self._ref_without_colour(language, thing, about), "colour": COLOUR_WORDS[language][colour]}
        return self._yes_no(language, words, true, _YES_NO, thing)

    def _are_there(self, language: Language, _: Thing | None) -> _Answer:
        count = len(self._things)
        true = count > 1 and self.random.random() < 0.5
        claimed = count if true else self.random.choice([number for number in (2, 3) if number != count])
        things = self._nouns(language)["things"]
        number = NUMBERS[language][claimed]
        return self._yes_no(
            language, {"number": f"{number} {things}" if language == "en" else f"{number}个{things}"}, true, _YES_NO
        )

    def _absent(self, language: Language, _: Thing | None) -> _Answer:
        colour, shape = self._absent_pair()
        name = noun(language, colour, shape)
        template = self.random.choice(["direction", "change", "part_when"])
        asked = self._coloured(language, colour, shape)
        words = {"ref": f"the {asked}" if language == "en" else asked, **self._verbs(language, self.random.choice(SUDDEN))}
        reply = f"There is no {name}." if language == "en" else f"没有{name}。"
        return _Answer(words, reply, (_bare(reply),), (), template=template)

    def _unknown(self, language: Language, _: Thing | None) -> _Answer:
        phrases = _PHRASES[language]
        nouns = phrases.HELD_OUT_NOUNS if self.held_out else phrases.NOUNS
        a, b = self.random.sample(nouns, 2)
        adjective = self.random.choice(phrases.ADJECTIVES or [""])
        words = {"a": a, "b": b, "adjective": adjective, "digit": str(self.random.randrange(2, 100))}
        reply = phrases.ANSWERS["unknown"]
        return _Answer(words, reply, (_bare(reply),))

    def _small_talk(self, language: Language, _: Thing | None) -> _Answer:
        topic = self.random.choice(SMALL_TALK)
        reply = _PHRASES[language].ANSWERS[topic]
        return _Answer({}, reply, (_bare(reply),), template=topic)

    # What the topics share.

    @property
    def _scene(self) -> Scene:
        if self.scene is None:
            raise ValueError("there is no video to ask about")
        return self.scene

    @property
    def _things(self) -> tuple[Thing, ...]:
        return self._scene.things

    def _nothing_there(self, language: Language, topic: str) -> Turn:
        """A question that takes shapes for granted where there are none."""
        kind = "no_video" if self.scene is None else "empty"
        ref = self._coloured(language, self.random.choice(COLOUR_NAMES), self.random.choice(SHAPES))
        if self.random.random() < 0.4:
            ref = (
                self._shape_noun(language, self.random.choice(SHAPES)) if self.random.random() < 0.7 else self._generic(language)
            )
        words = {
            "ref": f"the {ref}" if language == "en" else ref,
            "colour": COLOUR_WORDS[language][self.random.choice(COLOUR_NAMES)],
            "part": self.random.choice(PART_WORDS[language][self.random.choice(list(PARTS))]),
            **self._verbs(language, self.random.choice((*MOVES, "grow", "shrink", *SUDDEN))),
        }
        reply = _PHRASES[language].ANSWERS[kind]
        return Turn(kind, language, self._phrase(language, topic, words), reply, (_bare(reply),))

    def _told(self, language: Language, thing: Thing, words: dict[str, str]) -> _Answer:
        """An answer that names the thing and what it does."""
        reply = sentence(language, thing)
        others = tuple(noun(language, other.colour, other.shape) for other in self._things if other is not thing)
        return _Answer({**self._nouns(language), **words}, reply, (_bare(reply),), others, thing)

    def _yes_no(
        self,
        language: Language,
        words: dict[str, str],
        true: bool,
        replies: dict[Language, tuple[str, str]],
        about: Thing | None = None,
    ) -> _Answer:
        if language == "en":
            accepted, rejected = ("yes", "no")[:: 1 if true else -1]
            return _Answer(words, replies[language][true], (accepted,), (rejected,), about)
        if true:
            return _Answer(words, replies[language][true], ("是", "有"), ("不", "没"), about)
        return _Answer(words, replies[language][true], ("不是", "没有"), (), about)

    def _phrase(self, language: Language, topic: str, words: dict[str, str]) -> str:
        """Fill a template and vary its style: polite beginnings, spelling, case, punctuation."""
        template = self.random.choice(_templates(language, topic, self.held_out))
        text = template.format(**words) if "{" in template else template
        in_video = topic not in ("unknown", *SMALL_TALK)
        if self.video is not None and in_video:
            text = self._in_video(language, text, self.video)
        elif in_video and self.random.random() < 0.1:
            text = self._with_suffix(language, text)
        if self.random.random() < 0.06:
            prefix = self.random.choice(_PHRASES[language].PREFIXES)
            text = prefix + (text[0].lower() + text[1:] if language == "en" else text)
        text = text[0].upper() + text[1:]
        if language == "en" and "olour" in text and self.random.random() < 0.5:
            text = text.replace("olour", "olor")
        style = self.random.random()
        if style < 0.25:
            return text.lower().rstrip("?.!？。！")
        if style < 0.35:
            return text.lower()
        if style < 0.47:
            return text.rstrip("?.!？。！")
        return text

    def _with_suffix(self, language: Language, text: str) -> str:
        if any(word in text for word in ("video", "clip", "视频", "画面")):
            return text
        suffix = self.random.choice(_PHRASES[language].SUFFIXES)
        return suffix + text if language == "zh" else f"{text[:-1]} {suffix}{text[-1]}"

    def _in_video(self, language: Language, text: str, video: int) -> str:
        """Say which of the two videos is meant."""
        if language == "zh":
            for known in ("这个视频", "这段视频", "视频"):
                if known in text:
                    return text.replace(known, f"第{'一二'[video - 1]}个视频", 1)
            return self.random.choice(phrases_zh.SECOND[video]) + text
        ordinal = ("first", "second")[video - 1]
        for known in ("this video", "the video", "the clip", "this clip"):
            if known in text:
                return text.replace(known, f"the {ordinal} {known.split()[1]}", 1)
        place = self.random.choice(phrases_en.SECOND[video])
        if self.random.random() < 0.4:
            return f"{place}, {text[0].lower()}{text[1:]}"
        return f"{text[:-1]} {place}{text[-1]}"

    def _ref(self, language: Language, thing: Thing, about: Thing | None) -> str:
        if about is not None:
            return self._it(language)
        way = self.random.random()
        if way < 0.55:
            return self._the(language, self._coloured(language, thing.colour, thing.shape))
        if way < 0.7:
            return self._ref_without_shape(language, thing)
        if way < 0.9 and self._only_of_shape(thing):
            return self._the(language, self._shape_noun(language, thing.shape))
        if len(self._things) == 1:
            return self._the(language, self._generic(language))
        return self._the(language, self._coloured(language, thing.colour, thing.shape))

    def _ref_without_colour(self, language: Language, thing: Thing, about: Thing | None) -> str:
        if about is not None:
            return self._it(language)
        if len(self._things) == 1 and self.random.random() < 0.3:
            return self._the(language, self._generic(language))
        return self._the(language, self._shape_noun(language, thing.shape))

    def _ref_without_shape(self, language: Language, thing: Thing) -> str:
        if len(self._things) == 1 and self.random.random() < 0.3:
            return self._the(language, self._generic(language))
        generic, colour = self._generic(language), COLOUR_WORDS[language][thing.colour]
        if language == "zh":
            return f"{colour}的{generic}" if self.random.random() < 0.7 else f"{colour}{generic}"
        return f"the {colour} {generic if self.random.random() < 0.85 else 'one'}"

    def _colour_candidates(self) -> list[Thing]:
        return [thing for thing in self._things if thing.to_colour is None and self._only_of_shape(thing)]

    def _only_of_shape(self, thing: Thing) -> bool:
        return sum(other.shape == thing.shape for other in self._things) == 1

    def _absent_pair(self) -> tuple[str, str]:
        """A colour and a shape that are not there together; often one of the two is."""
        used = {(colour, t.shape) for t in self._things for colour in (t.colour, t.to_colour)}
        pairs = [pair for pair in itertools.product(COLOUR_NAMES, SHAPES) if pair not in used]
        shapes = {thing.shape for thing in self._things}
        near = [pair for pair in pairs if (pair[0] in self._scene.colours) != (pair[1] in shapes)]
        return self.random.choice(near if self.random.random() < 0.7 else pairs)

    def _coloured(self, language: Language, colour: str, shape: str) -> str:
        word, name = COLOUR_WORDS[language][colour], self._shape_noun(language, shape)
        if language == "en":
            return f"{word} {name}"
        return f"{word}的{name}" if self.random.random() < 0.4 else f"{word}{name}"

    def _shape_noun(self, language: Language, shape: str) -> str:
        nouns = SHAPE_NOUNS[language][shape]
        return nouns[0] if self.random.random() < 0.5 else self.random.choice(nouns)

    def _generic(self, language: Language) -> str:
        return self.random.choice(GENERIC_NOUNS[language])

    def _nouns(self, language: Language) -> dict[str, str]:
        generic = self._generic(language)
        return {"noun": generic, "things": f"{generic}s" if language == "en" else generic}

    def _verbs(self, language: Language, event: Event) -> dict[str, str]:
        words = {"does": self.random.choice(PLAIN_VERBS[language][event]), **self._nouns(language)}
        if language == "en":
            words["verbs"] = self.random.choice(THIRD_PERSON_EN[event])
        return words

    @staticmethod
    def _the(language: Language, name: str) -> str:
        return f"the {name}" if language == "en" else name

    @staticmethod
    def _it(language: Language) -> str:
        return "it" if language == "en" else "它"


_TOPICS: dict[str, Callable[[Asker, Language, Thing | None], _Answer]] = {
    topic: getattr(Asker, f"_{topic}") for topic in _WEIGHTS
}


@cache
def _templates(language: Language, topic: str, held_out: bool) -> list[str]:
    phrases = _PHRASES[language]
    listed: list[str] = phrases.UNKNOWN if topic == "unknown" else phrases.QUESTIONS[topic]
    cut = listed.index(phrases_en.HELD_OUT)
    return listed[cut + 1 :] if held_out else listed[:cut]


def all_texts() -> Iterator[str]:
    """Every template and answer, for the tokenizer's vocabulary."""
    for phrases in _PHRASES.values():
        for listed in (*phrases.QUESTIONS.values(), phrases.UNKNOWN):
            yield from (text for text in listed if text != phrases_en.HELD_OUT)
        yield from phrases.ANSWERS.values()
        yield from phrases.NOUNS


def _fits(topic: str, thing: Thing) -> bool:
    if topic in ("colour", "is_colour"):
        return thing.to_colour is None
    return topic != "part_when" or thing.part is not None


def _only_sudden(scene: Scene) -> bool:
    """Nothing but sudden events, each in its own part: what comes first is beyond doubt."""
    parts = [thing.part for thing in scene.in_time]
    return all(thing.event in (*SUDDEN, "still") for thing in scene.things) and len(set(parts)) == len(parts)


def _same_event(scene: Scene) -> list[list[Thing]]:
    """Groups of two or more things with the same sudden event in different parts, by time."""
    groups = [[thing for thing in scene.in_time if thing.event == event] for event in SUDDEN]
    return [group for group in groups if len(group) > 1 and len({thing.part for thing in group}) == len(group)]


def _unique_events(scene: Scene) -> list[Thing]:
    """Things that alone do what they do; "stays still" only beside things that go places."""
    events = [thing.event for thing in scene.things]
    alone = [thing for thing in scene.things if events.count(thing.event) == 1]
    return [t for t in alone if t.event != "still" or all(other.event in MOVES for other in scene.things if other is not t)]


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
