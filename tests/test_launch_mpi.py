"""Engines of several ranks: the mpirun command line, and what mpirun does with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvideo_server.engine_directory import cuda_pool_bytes, world_size
from internvideo_server.launch import LaunchError
from internvideo_server.launch._device import Device
from internvideo_server.launch._mpi import mpi_command, mpi_environment
from internvideo_server.launch._repository import RunPlan
from internvideo_server.limits import EngineLimits, LimitsError
from internvideo_server.settings import ServeSettings

TRITON = [
    *("/opt/tritonserver/bin/tritonserver", "--model-repository=/r", "--disable-auto-complete-config"),
    *("--model-control-mode=explicit", "--load-model=*", "--backend-config=python,shm-region-prefix-name=iv_1_"),
    *("--http-port=8000", "--cuda-memory-pool-byte-size=0:64"),
]
LIMITS = EngineLimits("bfloat16", 92560, 4096, 2, 6144, 8192, 6144, 4096)


@pytest.fixture
def path_with_mpirun(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return {"PATH": str(program.parent)}


def ranks_of(command: list[str]) -> list[list[str]]:
    """The part of each rank, without ``-n 1``."""
    text = " ".join(command)
    return [part.partition("-n 1 ")[2].split() for part in text.split(" : ")]


def test_one_rank_needs_no_mpirun() -> None:
    assert mpi_command(TRITON, 1, "iv_1_", 8, {"PATH": ""}) == TRITON


def test_rank_0_serves_everything_and_the_others_load_the_engine_alone(path_with_mpirun: dict[str, str]) -> None:
    first, *others = ranks_of(mpi_command(TRITON, 4, "iv_1_", 8, path_with_mpirun))
    assert len(others) == 3
    assert "--load-model=*" in first
    assert "--cuda-memory-pool-byte-size=0:64" in first
    for rank, part in enumerate([first, *others]):
        assert part[0] == "/opt/tritonserver/bin/tritonserver"
        assert {"--model-repository=/r", "--disable-auto-complete-config", "--model-control-mode=explicit"} <= set(part)
        backend_config = f"--backend-config=python,shm-region-prefix-name=iv_1_rank{rank}_"
        assert [flag for flag in part if flag.startswith("--backend-config")] == [backend_config]
    for part in others:
        assert [flag for flag in part if flag.startswith("--load-model")] == ["--load-model=tensorrt_llm"]
        assert not any(flag.startswith("--cuda-memory-pool") for flag in part)


def test_without_mpirun_the_message_says_where_it_comes_from() -> None:
    with pytest.raises(LaunchError, match="2 ranks, which needs mpirun: it comes with NVIDIA's container"):
        mpi_command(TRITON, 2, "iv_1_", 8, {"PATH": "/no/such/directory"})


def test_mpi_variables_that_are_set_already_stay() -> None:
    assert mpi_environment({})["PMIX_MCA_gds"] == "hash"
    assert mpi_environment({"PMIX_MCA_gds": "ds21", "OPAL_PREFIX": "/elsewhere"}) == {}


def test_the_ranks_of_an_engine_are_its_files_and_what_its_config_says(tmp_path: Path) -> None:
    def write(size: int, files: int) -> None:
        for file in tmp_path.glob("rank*.engine"):
            file.unlink()
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_config": {"mapping": {"world_size": size}}}))
        for rank in range(files):
            (tmp_path / f"rank{rank}.engine").touch()

    write(1, 0)
    assert world_size(tmp_path) == 1
    write(12, 12)
    assert world_size(tmp_path) == 12
    write(2, 1)
    with pytest.raises(LimitsError, match=r"says 2 ranks, the directory holds rank0\.engine: build it anew"):
        world_size(tmp_path)


def test_the_pool_holds_each_regions_table_twice() -> None:
    assert LIMITS.table_bytes == 2048 * 4096 * 2
    assert cuda_pool_bytes(1, 1 << 20) == 64 << 20
    assert cuda_pool_bytes(8, LIMITS.table_bytes) == 2 * 8 * LIMITS.table_bytes


def test_each_rank_has_a_gpu_and_the_tower_may_have_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_config": {"mapping": {"world_size": 2}}}))
    for name in ("rank0.engine", "rank1.engine", "xgrammar_tokenizer_info.json"):
        (tmp_path / name).touch()
    plan = RunPlan(ServeSettings(kv_cache_fraction=0.5), tmp_path, tmp_path, "bfloat16", Device(1), Device(0))
    parameters = plan.parameters()
    assert parameters["tensorrt_llm"] == {
        "engine": "tensorrt_llm",
        "unsupported_inputs": "min_p,num_top_logprobs",
        "gpt_model_path": str(tmp_path),
        "gpu_device_ids": "1,2",
        "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": str(tmp_path / "xgrammar_tokenizer_info.json"),
        "kv_cache_free_gpu_mem_fraction": "0.5",
    }
    assert parameters["vit"]["device"] == "cuda:0"


def test_without_a_grammar_file_guided_decoding_is_off(tmp_path: Path) -> None:
    plan = RunPlan(ServeSettings(), tmp_path, tmp_path, "bfloat16", Device(0), Device(0))
    parameters = plan.parameters()["tensorrt_llm"]
    assert (parameters["guided_decoding_backend"], parameters["xgrammar_tokenizer_info_path"]) == ("", "")


RANK = """
import json, os, signal, sys, time
from pathlib import Path
out = Path(os.environ["OUT"]) / os.environ["OMPI_COMM_WORLD_RANK"]
ended = False
def end(*_):
    global ended
    ended = True
signal.signal(signal.SIGTERM, end)
facts = {"argv": sys.argv[1:], "cores": len(os.sched_getaffinity(0)), "mark": os.environ.get("INTERNVIDEO_RUN_ID")}
out.with_suffix(".tmp").write_text(json.dumps(facts))
out.with_suffix(".tmp").rename(out)
while not ended:
    time.sleep(0.02)
time.sleep(3.0)  # requests in flight
out.with_suffix(".ended").touch()
"""


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun: apt install openmpi-bin")
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_mpirun_runs_each_rank_with_its_flags_and_lets_it_end_in_order(tmp_path: Path) -> None:
    rank = tmp_path / "rank.py"
    rank.write_text(RANK)
    arguments = ["--load-model=*", "--backend-config=python,shm-region-prefix-name=x", "--http-port=1"]
    environment = {**os.environ, "OUT": str(tmp_path), "INTERNVIDEO_RUN_ID": "lab", **mpi_environment(os.environ)}
    command = mpi_command([sys.executable, str(rank), *arguments], 2, "iv_", 8, environment)
    command.insert(1, "--oversubscribe")  # more ranks than cores, on a small machine
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as mpirun:
        try:
            deadline = time.monotonic() + 60
            while not all((tmp_path / str(number)).exists() for number in (0, 1)):
                assert mpirun.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            mpirun.send_signal(signal.SIGTERM)
            mpirun.wait(30)
        finally:
            mpirun.kill()
    facts = [json.loads((tmp_path / str(number)).read_text()) for number in (0, 1)]
    assert [fact["argv"][-1] for fact in facts] == [f"--backend-config=python,shm-region-prefix-name=iv_rank{n}_" for n in (0, 1)]
    assert "--load-model=tensorrt_llm" in facts[1]["argv"]
    assert {fact["cores"] for fact in facts} == {len(os.sched_getaffinity(0))}  # bound to no core
    assert {fact["mark"] for fact in facts} == {"lab"}  # the supervisor finds every rank by it
    assert all((tmp_path / f"{number}.ended").exists() for number in (0, 1))
