"""Guided decoding by llguidance: which tokens may follow, so that an answer keeps to a JSON schema, a regex or a grammar.

Bounded on all sides: the guide's size, the work of compiling it and of each mask, the memory of its lexer. llguidance reports
what goes wrong as a state of the matcher, not as an exception, so the state is looked at after every step.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from internvideo_server.errors import invalid

MAX_GUIDE_BYTES = 64 << 10
_MOST_KEPT = 64  # compiled guides
_ENDLESS = "NoExtensionBias"  # llguidance's whole text
_ANY_OBJECT = '{"type": "object"}'


class GuideType(StrEnum):
    """``guided_decoding_guide_type``."""

    JSON = "json"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF_GRAMMAR = "ebnf_grammar"


@dataclass(frozen=True)
class Guide:
    """What an answer must keep to; ``text`` is empty for JSON."""

    kind: GuideType
    text: str


class GrammarError(ValueError):
    """The guide cannot be followed; the text is the coded form that reaches the client (`internvideo_server.errors`)."""

    def __init__(self, reason: str) -> None:
        super().__init__(invalid(f"the guide cannot be followed: {reason}", "guided_decoding_guide").text)


class Grammar:
    """One answer's way through a guide."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, own_end: int, end_id: int) -> None:
        self._matcher, self._own_end, self._end_id = matcher, own_end, end_id
        self._vocab_size = vocab_size
        self._bits = allocate_token_bitmask(1, vocab_size)
        self._taken = 0  # tokens of the answer that the matcher knows

    def allowed(self, output: Sequence[int]) -> npt.NDArray[np.bool_] | None:
        """Which tokens may follow.

        Args:
            output: The answer so far; it grows from call to call.

        Returns:
            Booleans [vocab], with the request's end id where the answer may end here; None: it is complete.

        Raises:
            GrammarError: A limit was reached on the way.
        """
        for token in output[self._taken :]:
            self._matcher.consume_token(token)
            self._check()
            self._taken += 1
        if self._matcher.is_stopped():
            return None
        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        mask = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")[: self._vocab_size].astype(np.bool_)
        may_end = bool(mask[self._own_end])
        mask[self._own_end] = False
        if self._end_id >= 0:
            mask[self._end_id] = may_end
        elif may_end and not mask.any():
            return None
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(_first_line(self._matcher.get_error()))


class GrammarCompiler:
    """Compiles guides for one engine's vocabulary and keeps those used lately. Safe for several threads.

    Args:
        tokenizer_file: The engine's ``tokenizer.json``; read at the first guide.
        vocab_size: The engine's, which may be more than the tokenizer has.
        end_id: The model's own end token: stands for "may end here" inside llguidance.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, end_id: int) -> None:
        self._file, self._vocab_size, self._end_id = tokenizer_file, vocab_size, end_id
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: LRUCache[Guide, LLMatcher] = LRUCache(_MOST_KEPT)
        # In llguidance's own units. The worst regex found costs 1.7 s, once, in the compiling thread.
        self._limits = LLParserLimits(
            initial_lexer_fuel=1_000_000,
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_lexer_states=20_000,
            max_grammar_size=500_000,
            precompute_large_lexemes=True,  # else a step may take many seconds whatever its fuel
            verbose_errors=False,
        )

    def compile(self, guide: Guide, end_id: int) -> Grammar:
        """A way through the guide; what takes long is done once a guide.

        Args:
            guide: What to follow.
            end_id: The request's end token; -1: none, then the answer ends where nothing can follow.

        Raises:
            GrammarError: It is too large, wrong, or asks for what llguidance does not do.
        """
        with self._lock:
            matcher = self._kept.get(guide)
            if matcher is None:
                matcher = self._kept[guide] = self._compiled(guide)
            return Grammar(matcher.deep_copy(), self._vocab_size, self._end_id, end_id)

    def _compiled(self, guide: Guide) -> LLMatcher:
        if (size := len(guide.text.encode())) > MAX_GUIDE_BYTES:
            raise GrammarError(f"it has {size} bytes, at most {MAX_GUIDE_BYTES} are possible")
        if self._tokenizer is None:
            text = self._file.read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._end_id)
        matcher = LLMatcher(self._tokenizer, _grammar_of(guide), limits=self._limits, log_level=0)
        if not matcher.is_error():  # some limits show at the first step only
            fill_next_token_bitmask(matcher, allocate_token_bitmask(1, self._vocab_size))
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return matcher


def _grammar_of(guide: Guide) -> str:
    """Llguidance's form of a guide; most faults show only when it is compiled."""
    try:
        match guide.kind:
            case GuideType.JSON | GuideType.JSON_SCHEMA:
                schema = _ANY_OBJECT if guide.kind is GuideType.JSON else guide.text
                if not isinstance(json.loads(schema), dict):
                    raise GrammarError("the schema is not a JSON object")
                # Without blanks between the parts: a model that may write blanks may write nothing else.
                grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            case GuideType.REGEX:
                grammar = LLMatcher.grammar_from_regex(guide.text)
            case GuideType.EBNF_GRAMMAR:
                grammar = LLMatcher.grammar_from_lark(any_to_lark(guide.text))
    except GrammarError:
        raise
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except Exception as error:  # any_to_lark raises IndexError and plain Exception, too
        raise GrammarError(_first_line(str(error))) from error
    return str(grammar)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("<non-verbose/>", "").splitlines() if line.strip()]
    if lines == [_ENDLESS]:
        return "a rule or a reference leads to nothing but itself"
    return "; ".join(lines)[:300] or "a limit on its complexity was reached"
