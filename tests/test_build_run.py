"""A whole run of build_scripts/build.py with stand-ins for TensorRT-LLM, which cannot be installed where these tests run.

In its place are a package ``tensorrt_llm`` that records how it is called, and a ``trtllm-build`` that writes an engine's
config.json from its flags.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internvideo_server.limits import EngineLimits
from tests.conftest import ROOT

SCRIPT = ROOT / "build_scripts" / "build.py"

STAND_IN = """
import json, os
from pathlib import Path

CALLS = Path(os.environ["CALLS"])


class Record:
    def __init__(self, **values):
        self.__dict__.update(values)


def note(name, **values):
    values = {k: v.__dict__ if isinstance(v, Record) else v for k, v in values.items()}
    with CALLS.open("a") as file:
        file.write(json.dumps([name, values]) + "\\n")


class Mapping(Record):
    pass


class QuantConfig(Record):
    pass


class QuantAlgo:
    W8A16, FP8, W4A16_AWQ = "W8A16", "FP8", "W4A16_AWQ"


class LLaMAForCausalLM:
    def __init__(self, mapping):
        self.mapping = mapping

    @classmethod
    def from_hugging_face(cls, hf_model_or_dir, dtype="auto", mapping=None, quant_config=None, **kwargs):
        assert not kwargs
        config = json.loads(Path(hf_model_or_dir, "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"] and config["rope_scaling"] is None
        note("from_hugging_face", model=hf_model_or_dir, dtype=dtype, mapping=mapping, quant_config=quant_config)
        return cls(mapping)

    def save_checkpoint(self, output_dir, save_config=True):
        Path(output_dir, f"rank{getattr(self.mapping, 'rank', 0)}.safetensors").touch()
        if save_config:
            Path(output_dir, "config.json").write_text("{}")

    @classmethod
    def quantize(cls, hf_model_dir, output_dir, dtype="auto", mapping=None, quant_config=None, *, device="cuda",
                 calib_dataset="cnn_dailymail", calib_batches=512, calib_batch_size=1, calib_max_seq_length=512,
                 random_seed=1234, tokenizer_max_seq_length=2048, **kwargs):
        assert not kwargs
        assert Path(hf_model_dir, "tokenizer.json").is_file() and Path(hf_model_dir, "config.json").is_file()
        note("quantize", model=hf_model_dir, dtype=dtype, mapping=mapping, quant_config=quant_config, device=device,
             calib_dataset=calib_dataset, calib_batches=calib_batches)
        for rank in range(mapping.world_size):
            Path(output_dir, f"rank{rank}.safetensors").touch()
        Path(output_dir, "config.json").write_text("{}")
"""

TRTLLM_BUILD = """#!{python}
import json, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
checkpoint, out = Path(flags["--checkpoint_dir"]), Path(flags["--output_dir"])
ranks = len(list(checkpoint.glob("rank*.safetensors")))
for rank in range(ranks):
    (out / f"rank{{rank}}.engine").write_text("engine")
llama = json.loads((checkpoint.parent / "export" / "llama" / "config.json").read_text())
pretrained = {{key: llama[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}}
pretrained |= {{"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "mapping": {{"world_size": ranks}}}}
build = {{name: int(flags["--" + name]) for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")}}
build["max_prompt_embedding_table_size"] = int(flags["--max_multimodal_len"])
build["plugin_config"] = {{"use_paged_context_fmha": True, "remove_input_padding": True}}
config = {{"version": "1.2.1", "pretrained_config": pretrained, "build_config": build}}
(out / "config.json").write_text(json.dumps(config))
"""


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with the stand-ins; the file that notes the calls."""
    package = tmp_path / "python" / "tensorrt_llm"
    for module in ("mapping", "models/modeling_utils", "quantization"):
        (package / module).parent.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "mapping.py").write_text("from . import Mapping\n")
    (package / "models" / "__init__.py").write_text("from .. import LLaMAForCausalLM\n")
    (package / "models" / "modeling_utils.py").write_text("from .. import QuantConfig\n")
    (package / "quantization.py").write_text("from . import QuantAlgo\n")
    program = tmp_path / "bin" / "trtllm-build"
    program.parent.mkdir()
    program.write_text(TRTLLM_BUILD.format(python=sys.executable))
    program.chmod(0o755)
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return calls


def build(checkpoint: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(checkpoint), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def calls_of(file: Path) -> list[tuple[str, dict[str, Any]]]:
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_build_makes_an_engine_directory_that_the_server_reads(checkpoint: Path, container: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = build(checkpoint, out, "--quantization", "int8", "--tp", "2")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        *("engine", "export", "model_repository", "trtllm_checkpoint"),
    ]
    engine = out / "engine"
    assert sorted(path.name for path in engine.iterdir()) == [
        *("config.json", "rank0.engine", "rank1.engine", "step.json", "tokenizer.json", "xgrammar_tokenizer_info.json"),
    ]
    limits = EngineLimits.from_engine_dir(engine)
    assert (limits.dtype, limits.max_rows, limits.max_seq_len) == ("bfloat16", 2048, 7040)
    assert [(name, call["mapping"]["rank"], call["quant_config"]) for name, call in calls_of(container)] == [
        ("from_hugging_face", rank, {"quant_algo": "W8A16"}) for rank in (0, 1)
    ]
    rendered = (out / "model_repository" / "tensorrt_llm" / "config.pbtxt").read_text()
    assert str(engine / "xgrammar_tokenizer_info.json") in rendered
    assert '"0,1"' in rendered

    container.unlink()
    again = build(checkpoint, out, "--quantization", "int8", "--tp", "2")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("current, skipped") == 2
    assert calls_of(container) == []

    other = build(checkpoint, out, "--quantization", "int8", "--max-frames", "64")
    assert other.returncode == 0, other.stderr
    assert EngineLimits.from_engine_dir(engine).max_rows == 1024
    assert not (engine / "rank1.engine").exists()  # nothing of the former engine is left


@pytest.mark.parametrize(
    ("quantization", "quant_config"),
    [
        ("fp8", {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}),
        (
            "int4-awq",
            {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True},
        ),
    ],
)
def test_calibrated_presets_go_through_quantize(
    checkpoint: Path, container: Path, tmp_path: Path, quantization: str, quant_config: dict[str, Any]
) -> None:
    result = build(checkpoint, tmp_path / "out", "--quantization", quantization, "--calib-dataset", "/texts", "--calib-size", "9")
    assert result.returncode == 0, result.stderr
    [(name, call)] = calls_of(container)
    assert name == "quantize"
    assert call["quant_config"] == quant_config
    assert call["model"] == str(tmp_path / "out" / "export" / "calibration")
    assert (call["calib_dataset"], call["calib_batches"], call["device"]) == ("/texts", 9, "cuda")


def test_outside_the_container_the_build_says_so_before_it_writes(checkpoint: Path, tmp_path: Path) -> None:
    result = build(checkpoint, tmp_path / "out")
    assert result.returncode == 1
    assert "error: trtllm-build is not on PATH: run this inside NVIDIA's container" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_be_split_is_refused_first(checkpoint: Path, tmp_path: Path) -> None:
    result = build(checkpoint, tmp_path / "out", "--tp", "3")
    assert result.returncode == 1
    assert "--tp 3 does not divide the language model's num_attention_heads 4" in result.stderr


def test_convert_without_tensorrt_llm_says_where_to_run() -> None:
    command = [sys.executable, str(ROOT / "build_scripts" / "convert.py"), "/model", "--out", "/nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "TensorRT-LLM cannot be imported with" in result.stderr
