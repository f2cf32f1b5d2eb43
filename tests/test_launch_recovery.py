"""What dies comes back: stubs, tritonserver, the adapter; with the real tritonserver and trivial models."""

from __future__ import annotations

import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest
import tritonclient.grpc as grpcclient

from internvideo_server.launch import TritonServer, _model_control, _recovery, _serve, build_backends, find_tritonserver
from internvideo_server.launch._restarts import Restarts, TooManyRestartsError
from tests.launch_lab import Lab
from tests.launch_runs import Serving, model_answers, of_run, started, state_of, stub_of, until

pytestmark = pytest.mark.server
MODELS = ("preprocessing", "vit", "tensorrt_llm")


def test_every_killed_model_comes_back_and_the_others_keep_their_process(lab: Lab) -> None:
    with started(lab) as server:
        assert state_of(server) == {"status": "serving", "down": [], "deaths": {}, "reason": ""}
        for model in MODELS:
            before = {other: stub_of(lab, other).pid for other in MODELS}
            stub_of(lab, model).kill()
            until(lambda: state_of(server)["deaths"].get(model) == 1)  # noqa: B023
            until(lambda: state_of(server)["status"] == "serving")
            assert model_answers(server, model)
            after = {other: stub_of(lab, other).pid for other in MODELS}
            assert [other for other in MODELS if after[other] != before[other]] == [model]
        assert "SIGKILL" in state_of(server)["reason"]
        assert server.poll() is None


def test_a_model_that_the_operator_loads_anew_or_unloads_has_not_died(lab: Lab) -> None:
    with started(lab) as server, grpcclient.InferenceServerClient(server.grpc_url) as triton:
        before = {model: stub_of(lab, model) for model in MODELS}
        triton.load_model("vit", headers=server.secret.grpc_headers)
        triton.unload_model("preprocessing", headers=server.secret.grpc_headers)
        until(lambda: not any(before[model].is_running() for model in ("vit", "preprocessing")))
        stub_of(lab, "tensorrt_llm").kill()  # deaths are told in their order: what is told before this one was seen
        until(lambda: "tensorrt_llm" in state_of(server)["deaths"])
        until(lambda: state_of(server)["status"] == "serving")
        assert state_of(server)["deaths"] == {"tensorrt_llm": 1}
        assert model_answers(server, "vit")
        assert not triton.is_model_ready("preprocessing")


def test_a_death_is_told_with_its_signal_and_the_lines_of_that_process(lab: Lab) -> None:
    lab.talking_model("vit")
    serving = Serving(lab)
    serving.wait_for("Ready.")
    stub_of(lab, "vit").send_signal(signal.SIGABRT)
    until(lambda: "vit is back" in serving.errors)
    told = serving.errors
    assert "the process of model vit" in told
    assert "was ended by signal 6 (SIGABRT)" in told
    assert "words of vit alone" in told
    assert serving.end(signal.SIGTERM)[0] == 0


def test_killed_tritonserver_is_started_again_on_the_same_ports(lab: Lab) -> None:
    with started(lab) as server:
        old = of_run(lab, "triton_python_backend_stub")
        of_run(lab, "bin/tritonserver")[0].kill()
        until(lambda: state_of(server)["deaths"].get("tritonserver") == 1)
        until(lambda: state_of(server)["status"] == "serving")
        assert all(model_answers(server, model) for model in MODELS)
        assert not any(stub.is_running() for stub in old)
        assert len(of_run(lab, "triton_python_backend_stub")) == 3


def test_killed_adapter_is_started_again(lab: Lab) -> None:
    with started(lab) as server:
        of_run(lab, "internvideo_client.adapter")[0].kill()
        until(lambda: state_of(server)["deaths"].get("adapter") == 1)
        until(lambda: state_of(server)["status"] == "serving")
        assert httpx2.get(f"{server.adapter_url}/health/ready", trust_env=False).status_code == 200


@pytest.fixture
def ranks(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """An engine of two ranks: real tritonservers under the real mpirun; only the engine itself is a stand-in."""
    lab.spread_over_two_ranks()
    server = find_tritonserver()
    build_backends(server, lab.home / "server" / "backends", tmp_path / "backends")
    monkeypatch.setattr(TritonServer, "has_tensorrt_llm", True)
    monkeypatch.setattr(_serve, "find_tritonserver", lambda: replace(server, backends=tmp_path / "backends"))
    monkeypatch.setenv("OMPI_MCA_rmaps_base_oversubscribe", "1")  # more ranks than cores, on a small machine
    return lab


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun: apt install openmpi-bin")
def test_an_engine_of_two_ranks_is_started_again_as_a_group_whichever_process_died(ranks: Lab) -> None:
    with started(ranks) as server:
        for number, victim in enumerate(("1", "0", "mpirun"), start=1):
            group = {rank_of(process): process for process in [*of_run(ranks, "tritonserver"), *of_run(ranks, "mpirun")]}
            assert sorted(group) == ["0", "1", "mpirun"]
            group[victim].kill()
            until(lambda: state_of(server)["deaths"].get("tritonserver") == number)  # noqa: B023
            until(lambda: state_of(server)["status"] == "serving")
            assert all(model_answers(server, model) for model in MODELS)
            assert not any(process.is_running() for process in group.values())


def rank_of(process: psutil.Process) -> str:
    return process.environ().get("OMPI_COMM_WORLD_RANK", "mpirun")


def test_everything_killed_at_once_comes_back(lab: Lab) -> None:
    with started(lab) as server:
        for process in of_run(lab, ""):
            process.kill()
        until(lambda: {"adapter", "tritonserver"} <= state_of(server)["deaths"].keys())
        until(lambda: state_of(server)["status"] == "serving")
        assert all(model_answers(server, model) for model in MODELS)


@pytest.mark.parametrize("first", ["vit", "tritonserver"])
def test_a_model_that_dies_again_as_it_is_loaded_comes_back(lab: Lab, tmp_path: Path, first: str) -> None:
    """Triton itself would wait for the dead process for ever."""
    with started(lab, run_directory=tmp_path / "run") as server:
        before = stub_of(lab, "vit")
        with lab.slow_running_model("vit", tmp_path / "run"):
            (before if first == "vit" else of_run(lab, "bin/tritonserver")[0]).kill()
            until(lambda: server._supervisor.stubs.get("vit", before.pid) != before.pid)
        stub_of(lab, "vit").kill()
        until(lambda: sum(state_of(server)["deaths"].values()) >= 2)
        until(lambda: state_of(server)["status"] == "serving")
        assert all(model_answers(server, model) for model in MODELS)


def test_a_model_that_dies_as_it_is_loaded_first_ends_the_start_with_the_reason(lab: Lab) -> None:
    lab.slow_model("vit")
    serving = Serving(lab)

    def stubs() -> list[psutil.Process]:
        lab.note_runs()
        return [stub for stub in of_run(lab, "triton_python_backend_stub") if "vit_0_0" in stub.cmdline()] if lab.run_ids else []

    until(lambda: bool(stubs()))
    threading.Event().wait(1.0)  # the supervisor has seen it: it looks ten times a second
    stubs()[0].kill()
    code, errors = serving.finish(60)
    assert code != 0
    assert "the process of model vit" in errors


def test_a_model_that_cannot_be_loaded_again_ends_serve_with_the_reason(lab: Lab, tmp_path: Path) -> None:
    serving = Serving(lab, max_restarts=3, run_directory=tmp_path / "run")
    serving.wait_for("Ready.")
    lab.break_running_model("vit", tmp_path / "run")
    stub_of(lab, "vit").kill()
    code, errors = serving.finish()
    assert code == 3
    assert "the tower has no weights" in errors
    assert "3 restarts in 10 minutes did not help (--max-restarts)" in errors


def test_restarts_may_be_forbidden(lab: Lab) -> None:
    serving = Serving(lab, max_restarts=0)
    serving.wait_for("Ready.")
    of_run(lab, "bin/tritonserver")[0].kill()
    code, errors = serving.finish()
    assert code == 3
    assert "tritonserver was ended by signal 9" in errors


def test_a_model_that_stands_still_is_found_when_the_adapter_suspects_it(lab: Lab) -> None:
    with started(lab) as server:
        stub_of(lab, "vit").suspend()
        server.repository.with_name("suspect").touch()
        until(lambda: state_of(server)["deaths"].get("vit", 0) + state_of(server)["deaths"].get("tritonserver", 0) > 0)
        until(lambda: state_of(server)["status"] == "serving")
        assert model_answers(server, "vit")


def test_a_tritonserver_that_stands_still_is_found_when_the_adapter_suspects_it(lab: Lab) -> None:
    with started(lab) as server:
        of_run(lab, "bin/tritonserver")[0].suspend()
        server.repository.with_name("suspect").touch()
        until(lambda: state_of(server)["deaths"].get("tritonserver") == 1)
        until(lambda: state_of(server)["status"] == "serving")
        assert model_answers(server, "vit")
        assert set(state_of(server)["deaths"]) == {"tritonserver"}


def test_a_tritonserver_that_lets_nothing_through_to_a_new_process_is_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream handler may hang while it says that it lives."""
    with started(lab) as server:
        first = of_run(lab, "bin/tritonserver")[0]

        def answers(_control: object, model: str, _timeout_s: float) -> bool:
            return model != "vit" or not first.is_running()

        monkeypatch.setattr(_model_control.ModelControl, "answers", answers)
        for name in ("vit", "tritonserver"):
            server.repository.with_name("suspect").touch()
            until(lambda: state_of(server)["deaths"].get(name) == 1)  # noqa: B023
            until(lambda: state_of(server)["status"] == "serving")
        assert set(state_of(server)["deaths"]) == {"vit", "tritonserver"}


def test_an_adapter_that_stands_still_is_started_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recovery, "_WATCH_EVERY_S", 0.1)
    with started(lab) as server:
        of_run(lab, "internvideo_client.adapter")[0].suspend()
        until(lambda: state_of(server)["deaths"].get("adapter") == 1)
        until(lambda: state_of(server)["status"] == "serving")
        assert httpx2.get(f"{server.adapter_url}/health/ready", trust_env=False).status_code == 200


def test_restarts_are_counted_within_ten_minutes_and_follow_each_other_more_slowly() -> None:
    restarts = Restarts(most=6)
    assert [restarts.delay("vit", now) for now in (0.0, 1.0, 3.0, 8.0)] == [0.0, 1.0, 2.0, 4.0]
    assert restarts.delay("adapter", 8.0) == 0.0
    assert restarts.delay("vit", 100.0) == 0.0
    with pytest.raises(TooManyRestartsError, match="6 restarts in 10 minutes"):
        restarts.delay("vit", 101.0)
    assert restarts.delay("vit", 650.0) == 0.0
