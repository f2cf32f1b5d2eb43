"""The checkpoint directory in Hugging Face's layout: its configuration, its tensors, its identity.

Tensors are found through ``model.safetensors.index.json``. The last shard of the real checkpoint carries about 0.66 GB
of tensors of other tasks (boxes, masks, tracking) that the index does not list: walking the index never sees them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_VOCABULARY_TENSORS = ("language_model.model.tok_embeddings.weight", "language_model.output.weight")

# Files up to this size are hashed whole. The shards of the real checkpoint are larger.
_HASHED_WHOLE = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 16 << 10


class CheckpointError(ValueError):
    """The directory is not a usable InternVideo2.5 checkpoint; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint directory. Make it with `Checkpoint.open`; no tensor data has been read then.

    Attributes:
        path: The directory.
        config: The whole ``config.json``.
        vision_config: Its ``vision_config`` (InternViT).
        llm_config: Its ``llm_config`` (InternLM2).
        tensor_files: The file of each tensor, by the tensor's name, in the index's order.
        end_token_ids: ``eos_token_id`` of ``generation_config.json``: generation ends at any of them.
        dtype: Of the token embeddings: "float32", "float16" or "bfloat16".
    """

    path: Path
    config: dict[str, Any]
    vision_config: dict[str, Any]
    llm_config: dict[str, Any]
    tensor_files: dict[str, Path]
    end_token_ids: tuple[int, ...]
    dtype: str

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the JSON files and every shard's header, and check that they fit each other.

        Raises:
            CheckpointError: A file is missing, broken or cut short, a listed tensor is not in its shard, or the
                embeddings are not of ``llm_config``'s ``vocab_size`` and ``hidden_size``.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory: give the folder that holds config.json")
        config = _read_json(path / "config.json")
        vision_config, llm_config = (_section(config, key, path) for key in ("vision_config", "llm_config"))
        end_token_ids = _end_token_ids(path / "generation_config.json")
        tensor_files = _tensor_files(path)
        dtype = _check_shards(tensor_files, llm_config)
        return cls(path, config, vision_config, llm_config, tensor_files, end_token_ids, dtype)

    def tensors(self, prefix: str = "", device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors whose names start with ``prefix``, shard by shard, only one shard open at a time.

        On the CPU a tensor may be a view of the mapped file: copy what is kept.

        Yields:
            The full name and the tensor, in the dtype it was stored in.

        Raises:
            CheckpointError: A shard became unreadable since `open`.
        """
        wanted = [(name, file) for name, file in self.tensor_files.items() if name.startswith(prefix)]
        wanted.sort(key=lambda item: item[1])  # stable: the index's order inside a shard
        for file, entries in groupby(wanted, key=lambda item: item[1]):
            with _open_shard(file, framework="pt", device=device) as shard:
                for name, _ in entries:
                    yield name, shard.get_tensor(name)

    def tensor(self, name: str, device: str = "cpu") -> torch.Tensor:
        """One tensor by its full name.

        Raises:
            CheckpointError: The index does not list it.
        """
        if name not in self.tensor_files:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        with _open_shard(self.tensor_files[name], framework="pt", device=device) as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
            return tensor

    def fingerprint(self) -> str:
        """A key of the content, for caches: equal for copies of small checkpoints, cheap for the 16 GB one.

        JSON and tokenizer files and small shards are hashed whole. Reading 16 GB at each start would take longer than
        the start itself, so of a large shard the size, the header and blocks spread over it are hashed, which any
        training step changes, and the time of its last change, for an edit between the blocks.

        Returns:
            32 hexadecimal digits.
        """
        digest = hashlib.sha256()
        small = [file for file in self.path.glob("*.json") if file.is_file()]
        small += self.path.glob("tokenizer.model")
        for file in sorted(small):
            content = file.read_bytes()
            digest.update(f"\0{file.name}\0{len(content)}\0".encode() + content)
        for file in sorted(set(self.tensor_files.values())):
            _hash_shard(file, digest)
        return digest.hexdigest()[:32]


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint directory, by itself.

    Raises:
        CheckpointError: It is missing, broken, or another model's.
    """
    config = _read_json(path / "config.json")
    for key in ("vision_config", "llm_config"):
        _section(config, key, path)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(document).__name__}")
    return document


def _section(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise CheckpointError(f"{path / 'config.json'} has no object {key}: it describes no InternVL-like model")
    return section


def _end_token_ids(path: Path) -> tuple[int, ...]:
    value = _read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them, not {value!r}")
    return tuple(ids)


def _tensor_files(path: Path) -> dict[str, Path]:
    """From the index, or from the one shard of a checkpoint that has no index."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map")
        for name in set(map(str, weight_map.values())):
            if Path(name).name != name:
                raise CheckpointError(f"{index}: {name!r} is not a file name; shards lie beside the index")
        return {tensor: path / str(name) for tensor, name in weight_map.items()}
    if single.exists():
        with _open_shard(single, framework="np") as shard:
            return dict.fromkeys(shard.keys(), single)
    raise CheckpointError(f"{path} has neither {index.name} nor {single.name}: download the weights, too")


@contextmanager
def _open_shard(file: Path, *, framework: str, device: str = "cpu") -> Iterator[Any]:
    """`safe_open`, which checks the header and that the file is as long as the header says."""
    from safetensors import SafetensorError, safe_open  # not where only the router runs

    try:
        with safe_open(file, framework=framework, device=device) as shard:
            yield shard
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing though the index lists it: the download is not complete") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut short or broken ({error}): fetch it again") from error


def _check_shards(tensor_files: dict[str, Path], llm_config: dict[str, Any]) -> str:
    """Check every shard's header against the index and the vocabulary, and return the dtype of the embeddings."""
    stored_dtype = ""
    for file in sorted(set(tensor_files.values())):
        listed = {name for name, home in tensor_files.items() if home == file}
        with _open_shard(file, framework="np") as shard:
            if missing := sorted(listed - set(shard.keys())):
                raise CheckpointError(f"{file} lacks {missing[0]} ({len(missing)} tensors that the index puts there)")
            for name in listed.intersection(_VOCABULARY_TENSORS):
                shape = shard.get_slice(name).get_shape()
                if absent := [key for key in ("vocab_size", "hidden_size") if key not in llm_config]:
                    raise CheckpointError(f"config.json lacks llm_config.{absent[0]}: fetch it again")
                expected = [llm_config["vocab_size"], llm_config["hidden_size"]]
                if shape != expected:
                    raise CheckpointError(f"{name} is {shape}, llm_config's vocab_size and hidden_size are {expected}")
                stored_dtype = shard.get_slice(name).get_dtype()
    if absent := sorted(set(_VOCABULARY_TENSORS) - tensor_files.keys()):
        raise CheckpointError(f"no shard has {absent[0]}: these are not InternLM2 weights")
    if stored_dtype not in _DTYPES:
        raise CheckpointError(f"weights are {stored_dtype}; known are {', '.join(_DTYPES)} (no quantised checkpoints)")
    return _DTYPES[stored_dtype]


def _hash_shard(file: Path, digest: hashlib._Hash) -> None:
    status = file.stat()
    digest.update(f"\0{file.name}\0{status.st_size}\0".encode())
    with file.open("rb") as stream:
        if status.st_size <= _HASHED_WHOLE:
            while block := stream.read(1 << 20):
                digest.update(block)
            return
        header_length = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(header_length))
        for sample in range(_SAMPLES):
            stream.seek((status.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
        digest.update(str(status.st_mtime_ns).encode())
