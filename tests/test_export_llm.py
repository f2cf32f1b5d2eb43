"""The exported Llama computes what InternLM2 computes, and an engine directory is always a whole and current one."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from build_scripts import make_checkpoint as make_checkpoint_module
from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.checkpoint import Checkpoint, CheckpointError
from internvideo_server.export import __main__ as export_command
from internvideo_server.export import _internlm2_to_llama, shards
from internvideo_server.export.language_model import Dtype, export_llm
from internvideo_server.limits import EngineLimits, LimitsError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tiny"
    make_checkpoint(out)
    return out


@pytest.fixture(scope="module")
def engine(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from `tiny`; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("engine") / "tiny"
    export_llm(tiny, out)
    return out


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def _load(engine: Path) -> LlamaForCausalLM:
    model, report = LlamaForCausalLM.from_pretrained(engine / "llama", output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def _weights(engine: Path) -> dict[str, Tensor]:
    return {name: tensor for file in (engine / "llama").glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("case", ["f8", "f16"])
def test_golden_greedy_ids_with_the_golden_vision_embeddings(case: str, shared_dir: Path, tmp_path: Path) -> None:
    golden = shared_dir / "golden/tiny_s7"
    export_llm(golden / "model", tmp_path / "engine")
    model = _load(tmp_path / "engine")
    reference = json.loads((golden / case / "reference.json").read_text())
    vision = torch.from_numpy(np.load(golden / case / "vision_embeddings.npy"))  # [frames, 16, hidden]

    ids = torch.tensor([reference["input_ids"]])  # [1, N]
    with torch.no_grad():
        embeddings = model.model.embed_tokens(ids).clone()  # [1, N, hidden]
        embeddings[ids == reference["img_context_token_id"]] = vision.flatten(0, 1)
        generated = model.generate(
            inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False
        )
        logits = model(inputs_embeds=embeddings).logits[0, -1]
    assert generated[0].tolist() == reference["output_ids"]
    np.testing.assert_allclose(logits.numpy(), np.load(golden / case / "logits.npy")[0], atol=5e-5)


def test_logits_equal_a_plain_reading_of_internlm2(tiny: Path, engine: Path) -> None:
    ids = [1, 1499, 300, 700, 1100, 42, 300, 1498, 5]
    with torch.no_grad():
        logits = _load(engine)(torch.tensor([ids])).logits[0].double()
    torch.testing.assert_close(logits, _internlm2_logits(Checkpoint.open(tiny), ids), atol=2e-5, rtol=1e-5)


def _internlm2_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    """InternLM2 in float64, head by head, from the checkpoint's own tensors: [len(ids), vocab]."""
    llm = checkpoint.llm_config
    weights = {name: tensor.double() for name, tensor in checkpoint.tensors("language_model.")}
    heads, kv_heads, hidden = llm["num_attention_heads"], llm["num_key_value_heads"], llm["hidden_size"]
    size, queries = hidden // heads, heads // kv_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + llm["rms_norm_eps"]).sqrt() * weights[name]

    def rotate(x: Tensor) -> Tensor:  # [N, size]
        positions = torch.arange(len(x), dtype=torch.float64)[:, None]
        angles = positions * llm["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        first, second = x[:, : size // 2], x[:, size // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)

    x = weights["language_model.model.tok_embeddings.weight"][ids]
    causal = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.float64).triu(1)
    for layer in range(llm["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{layer}"
        normed = norm(x, f"{prefix}.attention_norm.weight")
        rows = list(weights[f"{prefix}.attention.wqkv.weight"].split(size))  # one matrix per head
        outputs = []
        for group in range(kv_heads):
            *q_rows, k_rows, v_rows = rows[group * (queries + 2) : (group + 1) * (queries + 2)]
            key, value = rotate(normed @ k_rows.T), normed @ v_rows.T
            for q_row in q_rows:
                scores = rotate(normed @ q_row.T) @ key.T / math.sqrt(size) + causal
                outputs.append(scores.softmax(-1) @ value)
        x = x + torch.cat(outputs, dim=1) @ weights[f"{prefix}.attention.wo.weight"].T
        normed = norm(x, f"{prefix}.ffn_norm.weight")
        w1, w2, w3 = (weights[f"{prefix}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x = x + (torch.nn.functional.silu(normed @ w1.T) * (normed @ w3.T)) @ w2.T
    return norm(x, "language_model.model.norm.weight") @ weights["language_model.output.weight"].T


def test_engine_directory_is_whole(tiny: Path, engine: Path) -> None:
    llama = json.loads((engine / "llama/config.json").read_text())
    assert llama["architectures"] == ["LlamaForCausalLM"]
    assert llama["rope_scaling"] is None
    assert llama["rope_theta"] == 1000000
    assert json.loads((engine / "llama/generation_config.json").read_text())["eos_token_id"] == [1498, 1499]
    assert json.loads((engine / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    assert {file.name for file in engine.iterdir()} == {".lock", "config.json", "llama", "source.json", "tokenizer.json"}
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in engine.rglob("*"))


def test_limits_follow_the_arguments(tiny: Path, tmp_path: Path) -> None:
    returned = export_llm(tiny, tmp_path / "e", max_batch_size=3, max_frames=80, max_seq_len=4096)
    read = EngineLimits.from_engine_dir(tmp_path / "e")
    assert read == returned
    assert read == EngineLimits(
        dtype="float32",
        vocab_size=1516,
        hidden_size=64,
        max_batch_size=3,
        max_input_len=4095,
        max_seq_len=4096,
        max_num_tokens=4096,
        max_prompt_embedding_table_size=3 * 80 * 16,
    )
    assert read.max_rows == 80 * 16


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_dtype_of_weights_and_limits(dtype: Dtype, tiny: Path, engine: Path, tmp_path: Path) -> None:
    assert export_llm(tiny, tmp_path / "e", dtype=dtype).dtype == dtype.value
    assert json.loads((tmp_path / "e/llama/config.json").read_text())["torch_dtype"] == dtype.value
    torch_dtype = getattr(torch, dtype.value)
    exact = _weights(engine)
    converted = _weights(tmp_path / "e")
    assert converted.keys() == exact.keys()
    assert all(torch.equal(tensor, exact[name].to(torch_dtype)) for name, tensor in converted.items())
    assert _load(tmp_path / "e").dtype == torch_dtype


def test_auto_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "bf16", dtype=make_checkpoint_module.Dtype.BFLOAT16)
    assert export_llm(tmp_path / "bf16", tmp_path / "e").dtype == "bfloat16"


def test_shards_in_and_out_do_not_change_the_weights(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "sharded", shards=4)
    monkeypatch.setattr(_internlm2_to_llama, "MAX_SHARD_BYTES", 100_000)
    export_llm(tmp_path / "sharded", tmp_path / "e")
    files = sorted((tmp_path / "e/llama").glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    exact, sharded = _weights(engine), _weights(tmp_path / "e")
    assert sharded.keys() == exact.keys()
    assert all(torch.equal(tensor, exact[name]) for name, tensor in sharded.items())
    _load(tmp_path / "e")


def _inodes(engine: Path) -> dict[str, int]:
    files = [engine / "tokenizer.json", *(engine / "llama").iterdir()]
    return {file.name: file.stat().st_ino for file in files}


def test_current_files_stay_while_limits_follow(tiny: Path, tmp_path: Path) -> None:
    export_llm(tiny, tmp_path / "e")
    before = _inodes(tmp_path / "e")
    export_llm(tiny, tmp_path / "e", max_batch_size=2)
    assert _inodes(tmp_path / "e") == before
    assert EngineLimits.from_engine_dir(tmp_path / "e").max_batch_size == 2


def _other_end_token(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [7]}')


def _other_weight(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["language_model.model.norm.weight"][0] += 1
    save_file(tensors, checkpoint / "model.safetensors")


@pytest.mark.parametrize("change", [_other_end_token, _other_weight])
def test_another_content_is_exported_again(change: Callable[[Path], None], checkpoint: Path, tmp_path: Path) -> None:
    export_llm(checkpoint, tmp_path / "e")
    before = _inodes(tmp_path / "e")
    change(checkpoint)
    export_llm(checkpoint, tmp_path / "e")
    assert _inodes(tmp_path / "e") != before


def test_another_dtype_is_exported_again(tiny: Path, tmp_path: Path) -> None:
    export_llm(tiny, tmp_path / "e")
    export_llm(tiny, tmp_path / "e", dtype=Dtype.BFLOAT16)
    assert {tensor.dtype for tensor in _weights(tmp_path / "e").values()} == {torch.bfloat16}


def test_leftovers_of_a_killed_export_do_no_harm(tiny: Path, tmp_path: Path) -> None:
    part = tmp_path / "e/.llama.part"
    part.mkdir(parents=True)
    (part / "1.part").write_bytes(b"half")
    export_llm(tiny, tmp_path / "e")
    _load(tmp_path / "e")
    assert not part.exists()


def test_a_failed_export_leaves_no_engine(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_llm(tiny, tmp_path / "e")

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_llm(tiny, tmp_path / "e", dtype=Dtype.FLOAT16)
    with pytest.raises(LimitsError):
        EngineLimits.from_engine_dir(tmp_path / "e")  # the weights of the old dtype do not pass for the new engine
    monkeypatch.undo()
    export_llm(tiny, tmp_path / "e", dtype=Dtype.FLOAT16)
    assert _load(tmp_path / "e").dtype == torch.float16


def test_an_export_that_ends_between_weights_and_tokenizer_does_not_pass_for_the_old_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_llm(tiny, tmp_path / "e")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("internvideo_server.export.tokenizer.export_tokenizer", killed)
    with pytest.raises(KeyboardInterrupt):
        export_llm(tiny, tmp_path / "e", dtype=Dtype.FLOAT16)
    monkeypatch.undo()
    assert export_llm(tiny, tmp_path / "e").dtype == "float32"
    assert _load(tmp_path / "e").dtype == torch.float32


def test_an_export_holds_the_directory_for_itself(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def write(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        with (tmp_path / "e/.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(file.name)
        save_file(tensors, file, metadata)

    monkeypatch.setattr(shards, "save_file", write)
    export_llm(tiny, tmp_path / "e")
    assert held == ["1.part"]
    with (tmp_path / "e/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def _edit_llm(checkpoint: Path, **values: object) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["llm_config"].update(values)
    path.write_text(json.dumps(config))


def _drop_llm_key(checkpoint: Path, key: str) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    del config["llm_config"][key]
    path.write_text(json.dumps(config))


def _edit_tensors(checkpoint: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


LAYER = "language_model.model.layers.1"
UNKNOWN: dict[str, tuple[Callable[[Path], object], str]] = {
    "other model": (lambda c: _edit_llm(c, model_type="qwen2"), "model_type must be 'internlm2', not 'qwen2'"),
    "biases": (lambda c: _edit_llm(c, bias=True), "bias must be False"),
    "tied embeddings": (lambda c: _edit_llm(c, tie_word_embeddings=True), "tie_word_embeddings must be False"),
    "other activation": (lambda c: _edit_llm(c, hidden_act="gelu"), "hidden_act must be 'silu'"),
    "missing key": (lambda c: _drop_llm_key(c, "rope_theta"), "llm_config lacks rope_theta"),
    "other head count": (lambda c: _edit_llm(c, num_key_value_heads=4), r"is \(128, 64\), config\.json says \(192, 64\)"),
    "missing layer": (lambda c: _edit_llm(c, num_hidden_layers=3), "no weights for model.layers.2"),
    "surplus layer": (lambda c: _edit_llm(c, num_hidden_layers=1), "more layers than"),
    "missing tensor": (
        lambda c: _edit_tensors(c, lambda t: t.pop(f"{LAYER}.feed_forward.w3.weight")),
        r"no weights for model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "unknown tensor": (
        lambda c: _edit_tensors(c, lambda t: t.update({f"{LAYER}.attention.wo.bias": torch.zeros(64)})),
        r"attention\.wo\.bias is not a tensor of InternLM2",
    ),
}


@pytest.mark.parametrize("change, message", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_the_export_does_not_know_is_refused(
    checkpoint: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        export_llm(checkpoint, tmp_path / "e")
    assert [file.name for file in (tmp_path / "e").iterdir()] == [".lock"]


def test_lengths_beyond_the_exact_positions_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitsError, match="32769"):
        export_llm(tiny, tmp_path / "e", max_seq_len=32769)
    assert not (tmp_path / "e").exists()


def test_command_line(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "build_scripts/export_llm.py"), str(tiny), "--out", "e", "--max-frames", "16"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    assert EngineLimits.from_engine_dir(tmp_path / "e").max_rows == 16 * 16


def test_command_line_names_the_fault(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(export_command.main)
    result = CliRunner().invoke(app, [str(tmp_path / "no"), "--out", str(tmp_path / "e")])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'no'} is not a directory: give the folder that holds config.json\n"


def test_a_current_engine_is_found_without_torch(tiny: Path, engine: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from internvideo_server.export.language_model import export_llm\n"
        "export_llm(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny), str(engine)], check=True, cwd=ROOT, timeout=60)
