"""From a topic and the words for its gaps to a question: its phrasings, trained and held out, and styles of writing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache

from build_scripts.demo_model.train.grading import nearly_the_same
from build_scripts.demo_model.train.phrases import phrases_of
from build_scripts.demo_model.train.words import LANGUAGES, Language

_WRAPPED = 0.4  # share of the trained questions that stand within another sentence
SMALL_TALK = ("hello", "who", "can", "thanks", "bye")


def fixed_answer(language: Language, name: str) -> str:
    """The one answer to small talk, to an unknown question, to a question without a video or without shapes."""
    return phrases_of(language).answers[name]


def unknown_words(language: Language, source: random.Random, *, held_out: bool) -> dict[str, str]:
    """Words for a question about something else than shapes."""
    phrases = phrases_of(language)
    a, b = source.sample(phrases.held_out_nouns if held_out else phrases.all_nouns, 2)
    adjective = source.choice(phrases.adjectives or [""])
    return {"a": a, "b": b, "adjective": adjective, "digit": str(source.randrange(2, 100))}


def phrase(
    language: Language, topic: str, words: dict[str, str], source: random.Random, *, held_out: bool, video: int | None
) -> str:
    """Fill a template and vary its style: polite beginnings, spelling, case, punctuation.

    Args:
        language: Of the question.
        topic: Decides the templates.
        words: For the gaps of any of them.
        source: Of all choices.
        held_out: Take the templates that training never sees.
        video: 1 or 2, where there are two videos and the question must say which it means.
    """
    wrapped = () if held_out else wrapped_templates(language, topic)
    template = source.choice(wrapped if wrapped and source.random() < _WRAPPED else templates(language, topic, held_out=held_out))
    text = template.format(**words) if "{" in template else template
    in_video = topic not in ("unknown", *SMALL_TALK)
    if video is not None and in_video:
        text = _in_video(language, text, video, source)
    elif in_video and source.random() < 0.1:
        text = _with_suffix(language, text, source)
    if source.random() < 0.06:
        prefix = source.choice(phrases_of(language).prefixes)
        text = prefix + (text[0].lower() + text[1:] if language == "en" else text)
    text = text[0].upper() + text[1:]
    if language == "en" and "olour" in text and source.random() < 0.5:
        text = text.replace("olour", "olor")
    style = source.random()
    if style < 0.25:
        return text.lower().rstrip("?.!？。！")
    if style < 0.35:
        return text.lower()
    if style < 0.47:
        return text.rstrip("?.!？。！")
    return text


@cache
def templates(language: Language, topic: str, *, held_out: bool) -> tuple[str, ...]:
    """The phrasings of a topic that stand for themselves."""
    phrases = phrases_of(language)
    if held_out:
        return tuple(phrases.held_out[topic])
    return (*phrases.trained[topic], *phrases.more.get(topic, ()))


@cache
def wrapped_templates(language: Language, topic: str) -> tuple[str, ...]:
    """Every core of a topic in every wrapping, but for those that come close to a held-out phrasing."""
    phrases = phrases_of(language)
    pairs = itertools.product(phrases.wrappings, phrases.cores.get(topic, ()))
    made = (wrapping.format(core=core) for wrapping, core in pairs)
    held_out = templates(language, topic, held_out=True)
    return tuple(text for text in made if not any(nearly_the_same(text, other) for other in held_out))


def all_texts() -> Iterator[str]:
    """Every template and answer, for the tokenizer's vocabulary."""
    for phrases in map(phrases_of, LANGUAGES):
        for topic, listed in phrases.trained.items():
            yield from (*listed, *phrases.held_out[topic])
        yield from phrases.answers.values()
        yield from phrases.nouns


def _with_suffix(language: Language, text: str, source: random.Random) -> str:
    if any(word in text for word in ("video", "clip", "视频", "画面")):
        return text
    suffix = source.choice(phrases_of(language).suffixes)
    return suffix + text if language == "zh" else f"{text[:-1]} {suffix}{text[-1]}"


def _in_video(language: Language, text: str, video: int, source: random.Random) -> str:
    """Say which of the two videos is meant."""
    if language == "zh":
        for known in ("这个视频", "这段视频", "视频"):
            if known in text:
                return text.replace(known, f"第{'一二'[video - 1]}个视频", 1)
        return source.choice(phrases_of(language).second[video]) + text
    ordinal = ("first", "second")[video - 1]
    for known in ("this video", "the video", "the clip", "this clip"):
        if known in text:
            return text.replace(known, f"the {ordinal} {known.split()[1]}", 1)
    place = source.choice(phrases_of(language).second[video])
    if source.random() < 0.4:
        return f"{place}, {text[0].lower()}{text[1:]}"
    return f"{text[:-1]} {place}{text[-1]}"
