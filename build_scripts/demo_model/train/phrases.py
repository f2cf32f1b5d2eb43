"""The phrasings, from the JSON files in ``phrases/``: LANGUAGE.json, and what was written later beside it.

In a template ``{ref}`` is a reference ("the red circle", "it"), ``{does}`` a verb ("move to the left"), ``{verbs}`` its third
person, ``{part}`` a part of the video, ``{thing}`` a noun with its article, ``{noun}`` the noun alone, ``{things}`` a plural.
Every core (``cores``) is trained in every wrapping (``wrappings``). What is ``held_out`` is never trained: it measures
understanding; ``LANGUAGE_further.json`` was written by someone who had not seen it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from build_scripts.demo_model.train.words import Language

_FOLDER = Path(__file__).parent / "phrases"


@dataclass(frozen=True)
class Phrases:
    """All of one language.

    Attributes:
        trained: Topic -> templates.
        held_out: Topic -> templates that training never sees.
        more: Topic -> further trained templates.
        wrappings: Sentences with a gap ``{core}``.
        cores: Topic -> what fills it.
        nouns: Of questions about something else than shapes; ``held_out_nouns`` are never trained.
        all_nouns: Those and the ones written later.
        adjectives: Likewise; some languages need none.
        answers: Name -> the one answer to small talk and to what cannot be answered.
        prefixes: Beginnings of a question.
        suffixes: Ends that name the video.
        second: Number of a video -> words that say which of two is meant.
    """

    trained: dict[str, list[str]]
    held_out: dict[str, list[str]]
    more: dict[str, list[str]]
    wrappings: list[str]
    cores: dict[str, list[str]]
    nouns: list[str]
    all_nouns: list[str]
    held_out_nouns: list[str]
    adjectives: list[str]
    answers: dict[str, str]
    prefixes: list[str]
    suffixes: list[str]
    second: dict[int, list[str]]


@cache
def phrases_of(language: Language) -> Phrases:
    """Read the files of a language."""
    own, indirect, further = (_read(f"{language}{kind}.json") for kind in ("", "_indirect", "_further"))
    return Phrases(
        trained={topic: each["trained"] for topic, each in own["questions"].items()},
        held_out={topic: each["held_out"] for topic, each in own["questions"].items()},
        more=_joined(indirect["more"], further["more"]),
        wrappings=indirect["wrappings"] + further["wrappings"],
        cores=_joined(indirect["cores"], further["cores"]),
        nouns=own["nouns"],
        all_nouns=own["nouns"] + further["nouns"],
        held_out_nouns=own["held_out_nouns"],
        adjectives=own["adjectives"],
        answers=own["answers"],
        prefixes=own["prefixes"],
        suffixes=own["suffixes"],
        second={int(number): words for number, words in own["second"].items()},
    )


def further_texts(language: Language) -> dict[str, Any]:
    """What was written later, as it stands in its file."""
    return _read(f"{language}_further.json")


def _joined(first: dict[str, list[str]], second: dict[str, list[str]]) -> dict[str, list[str]]:
    return {topic: first.get(topic, []) + second.get(topic, []) for topic in {**first, **second}}


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_FOLDER / name).read_text(encoding="utf-8"))
    return document
