from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

from internvideo_server.export.tokenizer import TokenizerExportError, export_tokenizer
from internvideo_server.preprocessing.chat import ChatTokenizer
from tests.tokenizer_files import (
    ADDED_PLAIN,
    ADDED_SPECIAL,
    OLD_NAMES,
    RENAMED,
    Tokenizers,
    real_tokenizers,
    small_model,
    small_tokenizers,
    write_tokenizer_files,
)

CONTROL_NAMES = ["<unk>", "<s>", "</s>", *RENAMED, *ADDED_SPECIAL, *ADDED_PLAIN]
SAMPLES = [
    "",
    " ",
    "  leading, trailing and    inner   spaces  ",
    "详细描述一下这个视频的内容。——……ＡＥＦｅ",
    "👩‍👩‍👧‍👦 🇩🇪 é é \ufeff\u200b\u202e\ufffd",
    "for (int i = 0; i < n; ++i) {\n\t\tx[i] += 1'000'000;\n}\r\n" + "-" * 99 + " " * 131 + "\n" * 17,
    "\0\x01\x1b[31m\x7f\x80\x9f NUL \0\0",
    "xab ay, ab▁a, ab  a",  # around the small tokenizer's user-defined piece "ab▁a"
    "a literal ▁ and <0xE4> and <0x00>",
    "الفيديو ไทย ひらがな 한국어 𝔘𝔫𝔦 \U0010ffff",
]
both = pytest.mark.parametrize("which", ["small", "real"])


def tokenizers(which: str, request: pytest.FixtureRequest) -> Tokenizers:
    if which == "small":
        return small_tokenizers()
    shared: Path = request.getfixturevalue("shared_dir")
    return real_tokenizers(shared / "data" / "internlm2_tokenizer.model")


def assert_equals_sentencepiece(made: Tokenizers, text: str) -> None:
    ids = made.sentencepiece.encode(text)
    assert made.chat.encode_text(text) == ids
    assert made.chat.fewest_tokens(text) <= len(ids)
    assert made.exported.decode(ids) == made.sentencepiece.decode(ids)


def texts(made: Tokenizers) -> st.SearchStrategy[str]:
    """Any text: any characters, pieces in any order, and the runs and repeats on which merge orders differ."""
    pieces = st.sampled_from(made.pieces)
    runs = st.tuples(st.sampled_from(" \n\t-=*#/_.01aw"), st.integers(1, 150)).map(lambda run: run[0] * run[1])
    chars = st.sampled_from("".join(dict.fromkeys("".join(made.pieces))))
    repeats = st.tuples(pieces, pieces).flatmap(lambda two: st.lists(st.sampled_from([*two, two[0][:1], two[1][-1:]])))
    return st.one_of(
        st.text(),
        st.lists(pieces, max_size=20).map("".join),
        st.lists(st.one_of(runs, pieces), max_size=6).map("".join),
        st.lists(chars, max_size=60).map("".join),
        repeats.map("".join),
    ).filter(lambda text: not any(name in text for name in OLD_NAMES))


@both
@pytest.mark.parametrize("text", SAMPLES)
def test_samples_encode_and_decode_as_sentencepiece_does(which: str, text: str, request: pytest.FixtureRequest) -> None:
    made = tokenizers(which, request)
    assert_equals_sentencepiece(made, text)
    assert made.exported.decode(made.chat.encode_text(text)) == text.replace("▁", " ")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_text_encodes_and_decodes_as_sentencepiece_does(data: st.DataObject) -> None:
    made = small_tokenizers()
    assert_equals_sentencepiece(made, data.draw(texts(made)))


def test_any_text_encodes_and_decodes_as_sentencepiece_does_with_the_real_vocabulary(shared_dir: Path) -> None:
    made = real_tokenizers(shared_dir / "data" / "internlm2_tokenizer.model")

    @settings(deadline=None, max_examples=300)
    @given(texts(made))
    def check(text: str) -> None:
        assert_equals_sentencepiece(made, text)

    check()


@both
@pytest.mark.parametrize("name", CONTROL_NAMES + OLD_NAMES)
def test_a_control_token_typed_by_a_user_is_text(which: str, name: str, request: pytest.FixtureRequest) -> None:
    made = tokenizers(which, request)
    control = {made.chat.token_id(control_name) for control_name in CONTROL_NAMES}
    ids = made.chat.encode_text(f"before {name}after{name}")
    assert not control & set(ids)
    assert made.exported.decode(ids) == f"before {name}after{name}"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(CONTROL_NAMES + OLD_NAMES + ["<", "[", "s>", "|", "5]"]), st.text(max_size=3))))
def test_no_text_makes_a_control_token(parts: list[str]) -> None:
    made = small_tokenizers()
    text = "".join(parts)
    ids = made.chat.encode_text(text)
    assert not {made.chat.token_id(name) for name in CONTROL_NAMES} & set(ids)
    assert made.exported.decode(ids) == text.replace("▁", " ")


@both
def test_a_name_that_no_control_token_took_over_stays_a_piece(which: str, request: pytest.FixtureRequest) -> None:
    made = tokenizers(which, request)
    name = "——" if which == "small" else "[UNUSED_TOKEN_140]"
    assert made.chat.encode_text(name) == [made.sentencepiece.piece_to_id(name)]


def test_the_real_control_tokens_have_their_published_ids(shared_dir: Path) -> None:
    chat = real_tokenizers(shared_dir / "data" / "internlm2_tokenizer.model").chat
    names = ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<box_begin>", "<tracking>"]
    assert [chat.token_id(name) for name in names] == [1, 2, 92542, 92543, 92544, 92545, 92546, 92553, 92559]
    assert chat.vocab_size == 92560


def test_only_special_control_tokens_are_dropped_in_decoding() -> None:
    made = small_tokenizers()
    ids = [made.chat.token_id(name) for name in ("<s>", "<|im_end|>", "<box>", "<box_begin>")]
    assert made.exported.decode(ids) == "<box_begin>"
    assert made.exported.decode(ids, skip_special_tokens=False) == "<s><|im_end|><box><box_begin>"


def test_characters_left_unfinished_by_the_model_decode_as_sentencepiece_does() -> None:
    made = small_tokenizers()
    byte = made.sentencepiece.piece_to_id("<0x00>")
    for data in (b"\xe4", b"\xe4\xbd", b"\xf0\x9f\x98", "你".encode(), b"\xff", b"\0"):
        ids = [made.sentencepiece.piece_to_id("a"), *(byte + value for value in data), made.sentencepiece.piece_to_id("a")]
        assert made.exported.decode(ids) == made.sentencepiece.decode(ids)


def test_every_id_decodes_as_sentencepiece_does() -> None:
    made = small_tokenizers()
    skipped = {0, 1, 2, *(made.sentencepiece.piece_to_id(name) for name in OLD_NAMES)}
    for token_id in set(range(made.sentencepiece.vocab_size())) - skipped:
        assert made.exported.decode([token_id]) == made.sentencepiece.decode([token_id])


def test_the_file_alone_encodes_control_tokens_as_the_original_tokenizer_does() -> None:
    made = small_tokenizers()
    ids = made.exported.encode("<|im_start|>user\na b<|im_end|>").ids
    text = made.sentencepiece.encode("user\na b")
    assert ids == [made.chat.token_id("<|im_start|>"), *text, made.chat.token_id("<|im_end|>")]


def test_export_is_the_same_every_time_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    checkpoint = write_tokenizer_files(tmp_path / "checkpoint", small_model())
    out = tmp_path / "engine" / "tokenizer.json"
    export_tokenizer(checkpoint, out)
    first = out.read_bytes()
    export_tokenizer(checkpoint, out)
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer.json"]


def test_without_added_tokens_json_the_config_is_enough(tmp_path: Path) -> None:
    checkpoint = write_tokenizer_files(tmp_path, small_model())
    (checkpoint / "added_tokens.json").unlink()
    export_tokenizer(checkpoint, tmp_path / "tokenizer.json")
    assert ChatTokenizer.from_file(tmp_path / "tokenizer.json").vocab_size == small_tokenizers().chat.vocab_size


def test_the_golden_checkpoint_exports(golden: Path, tmp_path: Path) -> None:
    export_tokenizer(golden / "model", tmp_path / "tokenizer.json")
    model = sentencepiece.SentencePieceProcessor(model_file=str(golden / "model" / "tokenizer.model"))
    chat = ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    for text in SAMPLES:
        assert chat.encode_text(text) == model.encode(text)
    assert chat.vocab_size == 1516


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: setattr(model.normalizer_spec, "add_dummy_prefix", True), "dummy prefix"),
        (lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True), "extra whitespace"),
        (lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"x"), "normaliser"),
        (lambda model: setattr(model.trainer_spec, "model_type", 1), "not a BPE"),
        (lambda model: setattr(model.trainer_spec, "byte_fallback", False), "byte fallback"),
        (lambda model: setattr(model.pieces[400], "type", 5), "unused"),
        (lambda model: setattr(model.pieces[400], "piece", "a\U0001f98a"), "characters"),
        (lambda model: setattr(model.pieces[400], "piece", "a b"), "bare space"),
    ],
)
def test_a_model_that_would_encode_otherwise_is_refused(spoil: object, reason: str, tmp_path: Path) -> None:
    model = sentencepiece_model.ModelProto.FromString(small_model())
    spoil(model)  # type: ignore[operator]
    checkpoint = write_tokenizer_files(tmp_path, model.SerializeToString())
    with pytest.raises(TokenizerExportError, match=reason):
        export_tokenizer(checkpoint, tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.model", None, "cannot read"),
        ("tokenizer.model", "\xff\xff\xff", "not a sentencepiece model"),
        ("tokenizer_config.json", None, "cannot read"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{}", "added_tokens_decoder"),
        ("added_tokens.json", json.dumps({"<other>": 1}), "<s> in tokenizer_config.json"),
        ("added_tokens.json", json.dumps({"<far>": 99999}), "gaps"),
    ],
)
def test_a_broken_file_is_named(name: str, content: str | None, reason: str, tmp_path: Path) -> None:
    checkpoint = write_tokenizer_files(tmp_path, small_model())
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content, encoding="latin-1")
    with pytest.raises(TokenizerExportError, match=reason):
        export_tokenizer(checkpoint, tmp_path / "tokenizer.json")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    for content in ("{", "{}", "[]", '{"model": {"vocab": {"a": 0}}, "added_tokens": []}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            ChatTokenizer.from_file(tmp_path / "tokenizer.json")
