"""Opening, reading and naming a checkpoint directory, sound and spoiled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server import checkpoint as checkpoint_module
from internvideo_server.checkpoint import Checkpoint, CheckpointError

EMBEDDINGS = "language_model.model.tok_embeddings.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in four shards; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(out, shards=4)
    return out


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def test_open_reads_configuration_and_tensor_files(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    assert checkpoint.config["model_type"] == "internvl_chat"
    assert checkpoint.vision_config["image_size"] == 448
    assert checkpoint.llm_config["model_type"] == "internlm2"
    assert checkpoint.end_token_ids == (1498, 1499)
    assert checkpoint.dtype == "float32"
    assert len(set(checkpoint.tensor_files.values())) == 4


def test_tensors_equal_those_of_the_files_and_come_shard_by_shard(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    expected = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    read = list(checkpoint.tensors())
    assert {name for name, _ in read} == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read)
    files = [checkpoint.tensor_files[name] for name, _ in read]
    assert files == sorted(files)


def test_tensors_with_a_prefix_open_only_the_shards_they_are_in(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    needed = {file for name, file in checkpoint.tensor_files.items() if name.startswith("vision_model.")}
    for file in set(checkpoint.tensor_files.values()) - needed:
        file.unlink()
    names = [name for name, _ in checkpoint.tensors("vision_model.")]
    assert len(names) == 32
    assert all(name.startswith("vision_model.") for name in names)


def test_one_tensor_by_name(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    assert checkpoint.tensor(EMBEDDINGS).shape == (1516, 64)
    with pytest.raises(CheckpointError, match=r"no tensor language_model\.nothing"):
        checkpoint.tensor("language_model.nothing")


def test_tensors_that_the_index_does_not_list_are_never_seen(path: Path) -> None:
    last = sorted(path.glob("*.safetensors"))[-1]
    save_file({**load_file(last), "sam.encoder.weight": torch.zeros(3)}, last)
    checkpoint = Checkpoint.open(path)
    assert "sam.encoder.weight" not in dict(checkpoint.tensors())


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny")
    assert not (tmp_path / "tiny" / "model.safetensors.index.json").exists()
    assert len(Checkpoint.open(tmp_path / "tiny").tensor_files) == 55


def test_a_single_end_token_may_stand_without_a_list(path: Path) -> None:
    (path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert Checkpoint.open(path).end_token_ids == (7,)


def _edit_json(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _cut(path: Path) -> None:
    file = sorted(path.glob("*.safetensors"))[1]
    os.truncate(file, file.stat().st_size - 1)


def _drop_tensor(path: Path) -> None:
    file = Checkpoint.open(path).tensor_files["mlp1.0.bias"]
    tensors = load_file(file)
    del tensors["mlp1.0.bias"]
    save_file(tensors, file)


def _quantise(path: Path) -> None:
    for file in path.glob("*.safetensors"):
        save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "is not a directory"),
    "no config": (lambda p: (p / "config.json").unlink(), r"config\.json is missing"),
    "broken config": (lambda p: (p / "config.json").write_text('{"a": '), r"config\.json is not valid JSON"),
    "config not utf-8": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is not valid JSON"),
    "config no object": (lambda p: (p / "config.json").write_text("[1]"), "must hold a JSON object, not list"),
    "other model": (lambda p: (p / "config.json").write_text("{}"), "has no object vision_config"),
    "no generation config": (lambda p: (p / "generation_config.json").unlink(), r"generation_config\.json is missing"),
    "end token no id": (lambda p: (p / "generation_config.json").write_text('{"eos_token_id": "x"}'), "eos_token_id"),
    "no weights": (lambda p: (p / "model.safetensors.index.json").unlink(), "download the weights"),
    "broken index": (lambda p: (p / "model.safetensors.index.json").write_text("{"), r"index\.json is not valid JSON"),
    "empty index": (lambda p: (p / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
    "index points outside": (
        lambda p: _edit_json(p / "model.safetensors.index.json", lambda d: d["weight_map"].update(x="../secret")),
        "is not a file name",
    ),
    "missing shard": (lambda p: next(p.glob("*-00003-*")).unlink(), r"00003-of-00004\.safetensors is missing"),
    "cut shard": (_cut, r"00002-of-00004\.safetensors is cut short or broken"),
    "empty shard": (lambda p: os.truncate(next(p.glob("*-00001-*")), 0), "is cut short or broken"),
    "shard of text": (lambda p: next(p.glob("*-00001-*")).write_text("<html>" * 99), "is cut short or broken"),
    "tensor not in its shard": (_drop_tensor, r"lacks mlp1\.0\.bias"),
    "index lists another tensor": (
        lambda p: _edit_json(p / "model.safetensors.index.json", lambda d: d["weight_map"].pop(EMBEDDINGS)),
        "no shard has language_model.model.tok_embeddings.weight",
    ),
    "wrong vocabulary": (
        lambda p: _edit_json(p / "config.json", lambda d: d["llm_config"].update(vocab_size=1515)),
        r"is \[1516, 64\], llm_config's vocab_size and hidden_size are \[1515, 64\]",
    ),
    "no hidden size": (
        lambda p: _edit_json(p / "config.json", lambda d: d["llm_config"].pop("hidden_size")),
        r"lacks llm_config\.hidden_size",
    ),
    "quantised": (_quantise, "weights are I8"),
}


@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_checkpoint_is_refused_by_name(path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(path)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path)


def test_a_shard_lost_after_opening_is_named(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    next(path.glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00004\.safetensors is missing"):
        list(checkpoint.tensors())


def test_fingerprint_is_of_the_content_not_of_the_place(made: Path, path: Path) -> None:
    os.utime(path / "model-00001-of-00004.safetensors", (1, 1))
    (path / "README.md").write_text("no part of the model")
    assert Checkpoint.open(path).fingerprint() == Checkpoint.open(made).fingerprint()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.model", "added_tokens.json"])
def test_fingerprint_changes_with_each_small_file(made: Path, path: Path, name: str) -> None:
    with (path / name).open("ab") as file:
        file.write(b"\n")
    assert Checkpoint.open(path).fingerprint() != Checkpoint.open(made).fingerprint()


def test_fingerprint_changes_with_one_weight(made: Path, path: Path) -> None:
    file = path / "model-00002-of-00004.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[-1] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert Checkpoint.open(path).fingerprint() != Checkpoint.open(made).fingerprint()


def test_fingerprint_of_large_shards_reads_little_and_sees_training_and_later_edits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "_HASHED_WHOLE", 1 << 10)
    monkeypatch.setattr(checkpoint_module, "_SAMPLE_BYTES", 64)
    file = path / "model-00002-of-00004.safetensors"
    before = Checkpoint.open(path).fingerprint()
    assert Checkpoint.open(path).fingerprint() == before

    times = file.stat()
    save_file({name: tensor * 1.001 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    trained = Checkpoint.open(path).fingerprint()
    assert trained != before

    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert Checkpoint.open(path).fingerprint() != trained


def test_opening_needs_no_torch(path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from internvideo_server.checkpoint import Checkpoint\n"
        "Checkpoint.open(Path(sys.argv[1])).fingerprint()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
