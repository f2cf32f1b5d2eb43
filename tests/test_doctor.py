"""`internvideo doctor`: each kind of fault is found, named, and comes with something to do."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config
from build_scripts.make_checkpoint import make_checkpoint
from internvideo_server.checkpoint_layout import tensor_shapes
from internvideo_server.doctor import Check, Report, Status, run
from internvideo_server.doctor._host import check_shm
from internvideo_server.doctor._models import check_checkpoint, check_engine
from internvideo_server.doctor._shapes import stored_shapes
from internvideo_server.gpus import find_gpus
from internvideo_server.settings import ServeSettings


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint(path, shards=3)
    return path


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def found(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def options(**changes: Any) -> ServeSettings:
    free = {"port": 0, "triton_grpc_port": 0, "triton_metrics_port": 0}
    return ServeSettings(**{"device": "cpu", **free, **changes})


# ---- checkpoint


def test_a_sound_checkpoint_is_described(model: Path) -> None:
    check = found(run(options(checkpoint=model)), "checkpoint")
    assert (check.status, check.message) == (Status.OK, "459,776 parameters in 3 files, float32, vocabulary 1516")


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def shard_with(model: Path, tensor: str) -> Path:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    return model / str(index["weight_map"][tensor])


def reshape(model: Path, tensor: str, shape: tuple[int, ...]) -> None:
    file = shard_with(model, tensor)
    tensors = load_file(file)
    tensors[tensor] = np.zeros(shape, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config.json": (lambda m: (m / "config.json").unlink(), "config.json is missing"),
    "broken config.json": (lambda m: (m / "config.json").write_text('{"a": '), "config.json is not valid JSON"),
    "no generation_config.json": (lambda m: (m / "generation_config.json").unlink(), "generation_config.json is missing"),
    "no shard": (lambda m: (m / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-00003.safetensors is missing"),
    "cut shard": (
        lambda m: os.truncate(m / "model-00003-of-00003.safetensors", 50_000),
        "model-00003-of-00003.safetensors is cut short or broken",
    ),
    "no weights": (lambda m: [f.unlink() for f in m.glob("model*")], "has neither model.safetensors.index.json nor"),
    "broken index": (
        lambda m: (m / "model.safetensors.index.json").write_text("no json"),
        "model.safetensors.index.json is not valid JSON",
    ),
    "wrong vocabulary": (
        lambda m: edit(m / "config.json", lambda d: d["llm_config"].update(vocab_size=1500)),
        r"tok_embeddings.weight (is \[1516, 64\]|has 1516 rows)",
    ),
    "wrong shape": (
        lambda m: reshape(m, "language_model.model.layers.1.attention.wqkv.weight", (96, 64)),
        r"layers.1.attention.wqkv.weight is \[96, 64\], config.json makes it \[128, 64\] \(1 tensors are misshapen\)",
    ),
    "wrong number of layers": (
        lambda m: edit(m / "config.json", lambda d: d["llm_config"].update(num_hidden_layers=3)),
        "has no tensor language_model.model.layers.2.attention.wo.weight",
    ),
    "fewer layers than stored": (
        lambda m: edit(m / "config.json", lambda d: d["vision_config"].update(num_hidden_layers=1)),
        "has a tensor that config.json does not explain: vision_model.encoder.layers.1",
    ),
    "no size": (
        lambda m: edit(m / "config.json", lambda d: d["vision_config"].pop("patch_size")),
        "vision_config.patch_size must be a positive number, not None",
    ),
    "no tokenizer.model": (lambda m: (m / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    "empty tokenizer.model": (lambda m: (m / "tokenizer.model").write_bytes(b""), "tokenizer.model is empty"),
    "broken added_tokens.json": (lambda m: (m / "added_tokens.json").write_text("{"), "added_tokens.json is not valid JSON"),
}


@pytest.mark.parametrize("fault", SPOILERS)
def test_each_kind_of_spoiled_checkpoint_is_named(model: Path, fault: str) -> None:
    spoil, message = SPOILERS[fault]
    spoil(model)
    checks, _ = check_checkpoint(model)
    failures = [check for check in checks if check.status is Status.FAILED]
    assert len(failures) == 1
    assert re.search(message, failures[0].message)
    assert failures[0].fix


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    report = run(options(checkpoint=tmp_path / "none"))
    assert not report.ok
    assert (
        found(report, "checkpoint").message == f"{tmp_path / 'none'} is not a directory: give the folder that holds config.json"
    )


def test_the_expected_shapes_are_those_of_the_real_checkpoint() -> None:
    shapes = tensor_shapes(model_config(DIMENSIONS[Size.FULL], "bfloat16"))
    assert sum(math.prod(shape) for shape in shapes.values()) == 8_075_422_720  # the real model's
    assert len(shapes) == 573


def test_tensors_that_the_index_does_not_list_are_no_fault(model: Path) -> None:
    file = model / "model-00001-of-00003.safetensors"
    save_file({**load_file(file), "box_token": np.zeros(3, np.float32)}, file, metadata={"format": "pt"})
    checks, checkpoint = check_checkpoint(model)
    assert [check.status for check in checks] == [Status.OK]
    assert checkpoint is not None
    assert "box_token" not in stored_shapes(checkpoint)


# ---- engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A TensorRT-LLM engine directory for the tiny checkpoint, as far as the doctor looks."""
    path = tmp_path / "engine"
    path.mkdir()
    pretrained = {"architecture": "LlamaForCausalLM", "dtype": "float32", "vocab_size": 1516, "hidden_size": 64}
    pretrained |= {"num_hidden_layers": 2, "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}}
    build: dict[str, Any] = {"max_batch_size": 2, "max_input_len": 6144, "max_seq_len": 8192, "max_num_tokens": 6144}
    build |= {"max_prompt_embedding_table_size": 4096, "kv_cache_type": "PAGED"}
    build["plugin_config"] = {"use_paged_context_fmha": True, "remove_input_padding": True}
    document = {"version": "1.2.1", "pretrained_config": pretrained, "build_config": build}
    (path / "config.json").write_text(json.dumps(document))
    (path / "rank0.engine").write_bytes(b"engine")
    (path / "tokenizer.json").write_text("{}")
    (path / "xgrammar_tokenizer_info.json").write_text("{}")
    return path


def test_a_sound_engine_is_described(engine: Path) -> None:
    checks, limits = check_engine(engine, max_frames=128)
    assert limits is not None
    assert {check.name: check.status for check in checks} == {
        "engine": Status.OK,
        "engine version": Status.SKIPPED,  # no TensorRT-LLM here
        "engine plugins": Status.OK,
        "guided decoding": Status.OK,
        "prompt table": Status.OK,
    }


ENGINE_FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no config.json": (lambda e: (e / "config.json").unlink(), "engine", "does not exist"),
    "broken config.json": (lambda e: (e / "config.json").write_text("{"), "engine", "is not an engine config.json"),
    "no engine": (lambda e: (e / "rank0.engine").unlink(), "engine", "holds neither rank0.engine nor llama/"),
    "a rank missing": (
        lambda e: edit(e / "config.json", lambda d: d["pretrained_config"].update(mapping={"world_size": 2})),
        *("engine", "says 2 ranks, the directory holds rank0.engine"),
    ),
    "no tokenizer": (lambda e: (e / "tokenizer.json").unlink(), "tokenizer", "tokenizer.json is missing"),
    "table too small": (
        lambda e: edit(e / "config.json", lambda d: d["build_config"].update(max_prompt_embedding_table_size=2560)),
        *("prompt table", "128 frames need 2048 rows, the engine takes 1280 per request"),
    ),
    "no paged context": (
        lambda e: edit(e / "config.json", lambda d: d["build_config"]["plugin_config"].update(use_paged_context_fmha=False)),
        *("engine plugins", "built without use_paged_context_fmha"),
    ),
    "continuous cache": (
        lambda e: edit(e / "config.json", lambda d: d["build_config"].update(kv_cache_type="KVCacheType.CONTINUOUS")),
        *("engine plugins", "built without kv_cache_type"),
    ),
}


@pytest.mark.parametrize("fault", ENGINE_FAULTS)
def test_each_kind_of_unfit_engine_is_named(engine: Path, fault: str) -> None:
    spoil, name, message = ENGINE_FAULTS[fault]
    spoil(engine)
    checks, _ = check_engine(engine, max_frames=128)
    failures = [check for check in checks if check.status is Status.FAILED]
    assert [check.name for check in failures] == [name]
    assert message in failures[0].message
    assert failures[0].fix


def test_the_fix_for_a_small_table_names_the_frames_that_fit(engine: Path) -> None:
    edit(engine / "config.json", lambda d: d["build_config"].update(max_prompt_embedding_table_size=2 * 90 * 16))
    checks, _ = check_engine(engine, max_frames=128)
    assert "--max-frames 88" in next(check for check in checks if check.name == "prompt table").fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1509}, "vocab_size 1516 / 1509"),
        ({"hidden_size": 128}, "hidden_size 64 / 128"),
        ({"num_hidden_layers": 4}, "num_hidden_layers 2 / 4"),
    ],
)
def test_an_engine_of_another_checkpoint_is_found(model: Path, engine: Path, change: dict[str, int], message: str) -> None:
    edit(engine / "config.json", lambda d: d["pretrained_config"].update(change))
    check = found(run(options(checkpoint=model, engine=engine)), "agreement")
    assert check.status is Status.FAILED
    assert message in check.message


def test_an_engine_that_this_server_cannot_run_is_found(model: Path, engine: Path) -> None:
    report = run(options(checkpoint=model, engine=engine))
    assert found(report, "agreement").status is Status.OK
    assert "this tritonserver has no tensorrtllm backend" in found(report, "backend").message
    assert "a TensorRT-LLM engine needs a GPU" in found(report, "gpu").message
    assert not report.ok


# ---- GPU


NVIDIA_SMI = "#!/bin/sh\ncat <<'END'\n{}\nEND\n"


@pytest.fixture
def gpu(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """An environment whose nvidia-smi tells of one GPU."""

    def environment(*lines: str) -> dict[str, str]:
        program = tmp_path / "smi" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(NVIDIA_SMI.format("\n".join(lines)))
        program.chmod(0o755)
        return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    return environment


H200 = "0, NVIDIA H200, 590.44.01, 143771, 143160, 9.0"


def test_gpus_are_read_from_nvidia_smi(gpu: Callable[..., dict[str, str]]) -> None:
    [first, second] = find_gpus(gpu(H200, "1, NVIDIA L4, 580.95.05, 23034, 22000, 8.9", "2, broken, [N/A], [N/A], 1, 9.0"))
    assert (first.name, first.driver_major, first.total, first.compute_capability) == ("NVIDIA H200", 590, 143771 << 20, "9.0")
    assert second.index == 1
    assert find_gpus({"PATH": ""}) == []


def test_gpus_that_cuda_does_not_show_are_not_counted(gpu: Callable[..., dict[str, str]]) -> None:
    environ = gpu(H200, "1, NVIDIA L4, 580.95.05, 23034, 22000, 8.9")
    shown = {
        visible: [(each.index, each.name) for each in find_gpus({**environ, "CUDA_VISIBLE_DEVICES": visible})]
        for visible in ("1", "1,0", "", "GPU-c4f5")
    }
    both = [(0, "NVIDIA H200"), (1, "NVIDIA L4")]
    assert shown == {"1": [(0, "NVIDIA L4")], "1,0": [(0, "NVIDIA L4"), (1, "NVIDIA H200")], "": [], "GPU-c4f5": both}


@pytest.mark.parametrize(
    ("driver", "status"),
    [("590.44.01", Status.OK), ("600.1", Status.OK), ("580.95.05", Status.WARNING), ("570.124.06", Status.FAILED)],
)
def test_the_driver_is_held_against_the_containers_cuda(
    engine: Path, gpu: Callable[..., dict[str, str]], driver: str, status: Status
) -> None:
    report = run(options(engine=engine, device="cuda"), gpu(f"0, NVIDIA H200, {driver}, 143771, 143160, 9.0"))
    assert found(report, "driver").status is status


def test_fewer_gpus_than_ranks_are_found(engine: Path, gpu: Callable[..., dict[str, str]]) -> None:
    edit(engine / "config.json", lambda d: d["pretrained_config"].update(mapping={"world_size": 2}))
    (engine / "rank1.engine").touch()
    check = found(run(options(engine=engine, device="cuda"), gpu(H200)), "gpu")
    assert check.status is Status.FAILED
    assert "2 wanted, found 0: NVIDIA H200" in check.message


def test_a_host_without_the_model_repository_is_told_so_and_not_the_memory(
    model: Path, engine: Path, gpu: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everything = options(checkpoint=model, engine=engine, device="cuda")
    assert found(run(everything, gpu(H200)), "gpu memory").status is Status.OK
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    report = run(everything, gpu(H200))
    assert found(report, "model repository").status is Status.FAILED
    assert not [check for check in report.checks if check.name == "gpu memory"]


# ---- the rest of the host


def test_a_taken_port_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        report = run(options(port=port))
    assert found(report, "port --port").status is Status.FAILED
    assert f"sport = :{port}" in found(report, "port --port").fix
    assert found(report, "port --triton-grpc-port").status is Status.SKIPPED


def test_media_directories_are_looked_at(tmp_path: Path) -> None:
    report = run(options(allowed_local_media_path=(tmp_path, tmp_path / "none")))
    assert [check.status for check in report.checks if check.name == "media"] == [Status.OK, Status.FAILED]


def test_a_small_shared_memory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker = SimpleNamespace(total=64 << 20, free=64 << 20)  # docker's default
    monkeypatch.setattr(shutil, "disk_usage", lambda path: docker)
    check = check_shm(tmp_path, ranks=2)
    assert check.status is Status.FAILED
    assert "--shm-size=2g" in check.fix
    assert check_shm(tmp_path / "none", ranks=1).status is Status.FAILED


def test_a_missing_tritonserver_is_found() -> None:
    check = found(run(options(), {**os.environ, "TRITONSERVER": "/no/such/tritonserver"}), "tritonserver")
    assert check.status is Status.FAILED
    assert check.message == "$TRITONSERVER is /no/such/tritonserver, which is not an executable file"


def test_all_is_well_on_this_host(model: Path) -> None:
    report = run(options(checkpoint=model))
    assert report.ok, report.to_markup()
    document = report.to_document()
    assert document["ok"] is True
    assert {check["status"] for check in document["checks"]} <= {"ok", "skipped", "warning"}
    assert json.loads(json.dumps(document)) == document


def test_the_text_has_a_line_for_each_check_and_one_for_each_fix() -> None:
    report = Report((Check("a", Status.OK, "fine [brackets]"), Check("bb", Status.FAILED, "broken", "mend it")))
    lines = report.to_markup().splitlines()
    assert len(lines) == 5
    assert r"fine \[brackets]" in lines[0]
    assert lines[2].endswith("mend it")
    assert lines[-1] == "1 ok, 1 failed"
