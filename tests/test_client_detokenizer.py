"""Text from ids: equal to sentencepiece's decode however it is cut, and stop strings that never leak."""

from __future__ import annotations

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from internvideo_client.detokenizer import StopMatcher, TokenDecoder
from tests.fake_triton import byte_ids, make_tokenizer, piece


def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A small model of the real one's kind: BPE, byte fallback, nothing normalised."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red panda eats an apple", "两只红熊猫 climb \N{REPLACEMENT CHARACTER} trees"] * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


SP = sentencepiece_model()
PIECES = [SP.id_to_piece(i) for i in range(SP.vocab_size())]


def same_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(PIECES)}, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


TOKENIZER = same_tokenizer()
BYTE = {int(p[3:5], 16): i for i, p in enumerate(PIECES) if SP.is_byte(i)}


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = TokenDecoder(tokenizer)
    return "".join(map(decoder.push, ids)) + decoder.flush()


@given(st.lists(st.integers(3, len(PIECES) - 1)))
def test_any_ids_decode_as_sentencepiece_does(ids: list[int]) -> None:
    assert decode(TOKENIZER, ids) == SP.decode(ids)


@given(st.lists(st.sampled_from([0x61, 0x80, 0xBF, 0xC0, 0xC3, 0xE4, 0xB8, 0xAD, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0xF4, 0xFF])))
def test_broken_utf8_decodes_as_sentencepiece_does(data: list[int]) -> None:
    ids = [BYTE[byte] for byte in data]
    assert decode(TOKENIZER, ids) == SP.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_text_comes_back(text: str) -> None:
    assert decode(TOKENIZER, SP.encode(text)) == text


def test_special_tokens_have_no_text_and_break_no_character() -> None:
    first, *rest = byte_ids("中".encode())
    assert decode(make_tokenizer(), [1, piece("Hello"), first, 2, *rest, 3]) == "Hello中"


def test_character_appears_with_its_last_byte() -> None:
    decoder = TokenDecoder(make_tokenizer())
    assert [decoder.push(i) for i in byte_ids("é!".encode())] == ["", "é", "!"]


def test_piece_that_is_the_replacement_character_is_not_lost() -> None:
    assert decode(make_tokenizer(), [piece("\N{REPLACEMENT CHARACTER}")]) == "\N{REPLACEMENT CHARACTER}"
    mixed = [piece("\N{REPLACEMENT CHARACTER}"), *byte_ids(b"\xff"), piece("Hello")]
    assert decode(make_tokenizer(), mixed) == "\N{REPLACEMENT CHARACTER}" * 2 + "Hello"


letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def matched(stop: list[str], chunks: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stop)
    out = ""
    for chunk in chunks:
        out += matcher.push(chunk)
        if matcher.stopped:
            return out, True
    return out + matcher.flush(), False


@given(letters, stops, st.integers(1, 5))
def test_result_does_not_depend_on_chunks(text: str, stop: list[str], size: int) -> None:
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert matched(stop, chunks) == matched(stop, [text])


@given(letters, stops)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    if not ends:
        assert matched(stop, list(text)) == (text, False)
        return
    begin = min(ends[0] - len(s) for s in stop if text[: ends[0]].endswith(s))
    assert matched(stop, list(text)) == (text[:begin], True)


@given(letters, stops)
def test_what_was_sent_never_has_to_be_taken_back(text: str, stop: list[str]) -> None:
    matcher, sent, final = StopMatcher(stop), "", matched(stop, [text])[0]
    for char in text:
        sent += matcher.push(char)
        assert final.startswith(sent)
        if matcher.stopped:
            break


@pytest.mark.parametrize("chunk", ["Hello EN", "Hello E"])
def test_half_a_stop_string_is_held_back_and_given_at_the_end(chunk: str) -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push(chunk) == "Hello "
    assert matcher.flush() == chunk.removeprefix("Hello ")


def test_nothing_of_what_follows_a_stop_string_comes_out() -> None:
    matcher = StopMatcher(["END"])
    assert (matcher.push("a END of it"), matcher.stopped, matcher.flush()) == ("a ", True, "")
