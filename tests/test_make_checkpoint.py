"""The random checkpoint has the real one's layout, at both sizes, and is the same every time."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from build_scripts import make_checkpoint as make_checkpoint_module
from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config, tensor_specs
from build_scripts.make_checkpoint import Dtype, _split, make_checkpoint
from build_scripts.random_tokenizer import write_tokenizer
from internvideo_server.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tiny"
    make_checkpoint(out, seed=3)
    return out


def _tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))


def test_tiny_has_the_tensors_shapes_and_dtypes_of_the_golden_one(tiny: Path, shared_dir: Path) -> None:
    golden = Checkpoint.open(shared_dir / "golden/tiny_s7/model")

    def layout(checkpoint: Checkpoint) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in checkpoint.tensors()}

    assert layout(Checkpoint.open(tiny)) == layout(golden)


def test_tiny_has_the_configuration_of_the_golden_one(tiny: Path, shared_dir: Path) -> None:
    golden_path = shared_dir / "golden/tiny_s7/model"
    made, golden = Checkpoint.open(tiny), Checkpoint.open(golden_path)

    def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in keys}

    nested = ("llm_config", "vision_config", "transformers_version", "_name_or_path", "_commit_hash")
    assert without(made.config, *nested) == without(golden.config, *nested)
    assert made.vision_config == without(golden.vision_config, "transformers_version")
    assert made.llm_config == without(golden.llm_config, "transformers_version", "auto_map", "pretraining_tp")
    for name in ("added_tokens", "special_tokens_map", "tokenizer_config", "generation_config"):
        made_json, golden_json = (json.loads((p / f"{name}.json").read_text()) for p in (tiny, golden_path))
        assert made_json == golden_json, name


def test_full_has_the_real_tensors() -> None:
    """facts: 573 tensors in the index, 8,075,422,720 parameters, an index of 51.2 kB (computed: 51167 B), four shards."""
    specs = list(tensor_specs(DIMENSIONS[Size.FULL]))
    shapes = {spec.name: spec.shape for spec in specs}
    assert len(shapes) == len(specs) == 573
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == 8_075_422_720
    assert shapes["language_model.model.layers.31.attention.wqkv.weight"] == (6144, 4096)
    assert shapes["mlp1.1.weight"] == (4096, 4096)

    parts = _split(specs, Dtype.BFLOAT16, None)
    assert len(parts) == 4
    weight_map = {spec.name: f"model-{i:05d}-of-00004.safetensors" for i, part in enumerate(parts, start=1) for spec in part}
    index = json.dumps({"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}, indent=2) + "\n"
    assert len(index) == 51167


def test_full_has_the_real_configuration() -> None:
    config = model_config(DIMENSIONS[Size.FULL], "bfloat16")
    llm, vision = config["llm_config"], config["vision_config"]
    assert (llm["hidden_size"], llm["num_hidden_layers"], llm["vocab_size"]) == (4096, 32, 92560)
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"]) == (1024, 24, 16)
    assert config["torch_dtype"] == llm["torch_dtype"] == vision["torch_dtype"] == "bfloat16"


def test_equal_arguments_give_equal_files(tiny: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "again", seed=3)
    files = sorted(file.name for file in tiny.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in files:
        assert (tiny / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_seed_gives_other_weights(tiny: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other", seed=4)
    other = dict(Checkpoint.open(tmp_path / "other").tensors())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in Checkpoint.open(tiny).tensors())


def test_shards_and_dtype_change_the_files_not_the_weights(tiny: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "sharded", seed=3, shards=3, dtype=Dtype.BFLOAT16)
    assert len(list((tmp_path / "sharded").glob("model-*-of-00003.safetensors"))) == 3
    sharded = dict(Checkpoint.open(tmp_path / "sharded").tensors())
    for name, tensor in Checkpoint.open(tiny).tensors():
        assert torch.equal(tensor.to(torch.bfloat16), sharded[name]), name


def test_weights_can_be_read_by_others(tiny: Path) -> None:
    assert (tiny / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_activations_neither_vanish_nor_grow(tiny: Path) -> None:
    for name, tensor in Checkpoint.open(tiny).tensors():
        gain = tensor.std() * math.sqrt(tensor[0].numel()) if name.endswith("weight") and tensor.ndim == 2 else 1
        assert name.endswith("tok_embeddings.weight") or 0.8 < gain < 3.3, name


def test_tokenizer_has_the_settings_of_internlm2(tiny: Path) -> None:
    tokenizer = _tokenizer(tiny)
    assert tokenizer.get_piece_size() == 1500
    assert [tokenizer.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert all(tokenizer.is_byte(i) for i in range(3, 259))
    assert tokenizer.pad_id() == -1
    assert [tokenizer.id_to_piece(i) for i in range(1494, 1500)] == [f"[UNUSED_TOKEN_{i}]" for i in range(141, 147)]
    assert tokenizer.encode("[UNUSED_TOKEN_145]") == [1498]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_tokenizer_keeps_every_character(tiny: Path, text: str) -> None:
    """No dummy prefix, no normalisation, no removal of spaces, byte fallback."""
    text = text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")  # sentencepiece's own mark of a space
    tokenizer = _tokenizer(tiny)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id() not in ids


def test_tokenizer_has_learnt_words_in_both_languages(tiny: Path) -> None:
    tokenizer = _tokenizer(tiny)
    english, chinese = "Describe this video in detail.", "详细描述一下这个视频的内容。"
    assert len(tokenizer.encode(english)) < len(english) / 3
    assert len(tokenizer.encode(chinese)) < len(chinese)


def test_the_trained_tokenizer_is_filled_up_to_the_real_vocabulary(tmp_path: Path) -> None:
    ends = write_tokenizer(tmp_path, 92560, seed=0)
    tokenizer = _tokenizer(tmp_path)
    assert tokenizer.get_piece_size() == 92544
    assert ends == [92542, 92543]
    assert json.loads((tmp_path / "added_tokens.json").read_text())["<IMG_CONTEXT>"] == 92546
    text = "What happens [PADDING_17] in the video? [PADDING_9999]"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < 1494


def test_a_given_tokenizer_is_copied(tmp_path: Path, shared_dir: Path) -> None:
    real = shared_dir / "data/internlm2_tokenizer.model"
    assert write_tokenizer(tmp_path, 92560, seed=0, tokenizer_model=real) == [92542, 92543]
    assert (tmp_path / "tokenizer.model").read_bytes() == real.read_bytes()
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["92542"]["content"] == "<|im_end|>"
    assert decoder["92559"]["content"] == "<tracking>"


def test_a_tokenizer_that_does_not_fit_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("no model")
    for file, message in ((tiny / "tokenizer.model", "1500 pieces"), (tmp_path / "text.model", "not a sentencepiece")):
        with pytest.raises(ValueError, match=message):
            make_checkpoint(tmp_path / "out", size=Size.FULL, tokenizer_model=file)
    assert [file.name for file in tmp_path.iterdir()] == ["text.model"]


def test_a_directory_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        make_checkpoint(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_more_shards_than_the_tensors_allow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be split into 50 files"):
        make_checkpoint(tmp_path / "out", shards=50)


@given(shards=st.integers(1, 4))
def test_splitting_keeps_order_and_loses_nothing(shards: int) -> None:
    specs = list(tensor_specs(DIMENSIONS[Size.TINY]))
    parts = _split(specs, Dtype.FLOAT32, shards)
    assert len(parts) == shards
    assert list(itertools.chain(*parts)) == specs


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "build_scripts/make_checkpoint.py"), "--size", "tiny", "--out", "x"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    assert len(Checkpoint.open(tmp_path / "x").tensor_files) == 55


def test_command_line_names_the_fault(tiny: Path) -> None:
    app = typer.Typer()
    app.command()(make_checkpoint_module.main)
    result = CliRunner().invoke(app, ["--out", str(tiny)])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tiny} exists and is not empty: remove it or choose another --out\n"
