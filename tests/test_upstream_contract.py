"""model_repository/tensorrt_llm/config.pbtxt against what NVIDIA's C++ backend declares and reads."""

from __future__ import annotations

import json
import queue
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from internvideo_server.launch import RunningServer
from tests.conftest import ROOT
from tests.upstream_contract import (
    FATAL_TYPES,
    INPUTS,
    KNOWN_PARAMETERS,
    MANDATORY_PARAMETERS,
    OUTPUTS,
    OWN_INPUTS,
    OWN_OUTPUTS,
    OWN_PARAMETERS,
    REQUIRED_PARAMETERS,
    Tensor,
)

DECLARED_INPUTS = {name: tensor for name, tensor in (INPUTS | OWN_INPUTS).items() if not tensor.left_out}
DECLARED_OUTPUTS = {name: tensor for name, tensor in (OUTPUTS | OWN_OUTPUTS).items() if not tensor.left_out}


@pytest.fixture(scope="module")
def config() -> Any:
    text = (ROOT / "model_repository" / "tensorrt_llm" / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def dtype_of(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")


def test_declares_upstreams_inputs_and_gives_a_reason_for_each_it_leaves_out(config: Any) -> None:
    assert {tensor.name for tensor in config.input} == DECLARED_INPUTS.keys()


def test_declares_upstreams_outputs_and_gives_a_reason_for_each_it_leaves_out(config: Any) -> None:
    assert {tensor.name for tensor in config.output} == DECLARED_OUTPUTS.keys()


def test_our_own_tensors_do_not_stop_nvidias_backend(config: Any) -> None:
    assert not OWN_INPUTS.keys() & INPUTS.keys()
    assert all(tensor.optional for tensor in OWN_INPUTS.values())
    assert not FATAL_TYPES & {dtype_of(tensor) for tensor in config.input}


def test_what_nvidias_engine_lacks_is_said(parameters: dict[str, str]) -> None:
    assert parameters["engine"] == "tensorrt_llm"
    assert set(parameters["unsupported_inputs"].split(",")) == OWN_INPUTS.keys()


def test_the_ensemble_passes_every_wish_on_and_every_answer_back(config: Any) -> None:
    text = (ROOT / "model_repository" / "internvideo2_5" / "config.pbtxt").read_text()
    ensemble = text_format.Parse(text, model_config_pb2.ModelConfig())
    [step] = [step for step in ensemble.ensemble_scheduling.step if step.model_name == "tensorrt_llm"]
    # Those of the chain itself, of a single model, and one that has no effect.
    inner = {"beam_width", "exclude_input_in_output", "return_perf_metrics", "stop", "prompt_vocab_size"}
    assert step.input_map.keys() == {tensor.name for tensor in config.input} - inner
    figures = step.output_map.keys() ^ {tensor.name for tensor in config.output}
    assert all(name.startswith("kv_cache_") or name.endswith("_time_ns") for name in figures)
    offered = {tensor.name: tensor for tensor in ensemble.input}
    for name, tensor in DECLARED_INPUTS.items():
        if name in offered and name != "request_output_len":
            assert (dtype_of(offered[name]), tuple(offered[name].dims), offered[name].optional) == (*tensor[:2], True)


@pytest.mark.parametrize(("name", "upstream"), DECLARED_INPUTS.items())
def test_each_input_is_declared_as_upstream_does(config: Any, name: str, upstream: Tensor) -> None:
    tensor = next(tensor for tensor in config.input if tensor.name == name)
    scalar = tensor.HasField("reshape")
    assert tuple(tensor.reshape.shape) == ()
    declared = (tuple(tensor.dims), tensor.optional, scalar, tensor.allow_ragged_batch)
    assert declared == (upstream.dims, upstream.optional, upstream.scalar, upstream.ragged)
    assert upstream.dtype in (None, dtype_of(tensor))


@pytest.mark.parametrize(("name", "upstream"), DECLARED_OUTPUTS.items())
def test_each_output_is_declared_as_upstream_does(config: Any, name: str, upstream: Tensor) -> None:
    tensor = next(tensor for tensor in config.output if tensor.name == name)
    assert (dtype_of(tensor), tuple(tensor.dims)) == (upstream.dtype, upstream.dims)


def test_the_prompt_table_is_in_the_dtype_of_the_default_engine(config: Any) -> None:
    assert [dtype_of(tensor) for tensor in config.input if tensor.name == "prompt_embedding_table"] == ["BF16"]


def test_the_frame_is_that_of_the_cpp_backend(config: Any) -> None:
    assert (config.name, config.backend) == ("tensorrt_llm", "tensorrtllm")
    assert config.max_batch_size >= 1
    assert config.model_transaction_policy.decoupled
    assert 0 < config.dynamic_batching.default_queue_policy.max_queue_size  # 0 would be no limit
    assert [(group.kind, group.count) for group in config.instance_group] == [(model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)]


def test_parameters_without_which_the_backend_does_not_load_are_there(parameters: dict[str, str]) -> None:
    assert parameters.keys() >= MANDATORY_PARAMETERS


def test_parameters_that_the_product_relies_on_are_set(parameters: dict[str, str]) -> None:
    assert {name: parameters.get(name) for name in REQUIRED_PARAMETERS} == REQUIRED_PARAMETERS


def test_no_parameter_is_misspelt(parameters: dict[str, str]) -> None:
    assert parameters.keys() <= KNOWN_PARAMETERS | OWN_PARAMETERS


def test_part_of_the_memory_is_left_to_the_vision_tower(parameters: dict[str, str]) -> None:
    assert 0 < float(parameters["kv_cache_free_gpu_mem_fraction"]) <= 0.85


def test_paths_are_those_of_the_container(parameters: dict[str, str]) -> None:
    assert parameters["gpt_model_path"] == "/engine"
    assert parameters["xgrammar_tokenizer_info_path"] == "/engine/xgrammar_tokenizer_info.json"


@pytest.mark.server
def test_triton_loads_the_configuration_as_it_is_written(server: RunningServer, config: Any) -> None:
    """Triton 2.51, with the embedded engine behind the backend's name; the launcher sets the dtype and the paths."""
    with InferenceServerClient(server.grpc_url) as client:
        loaded = client.get_model_config("tensorrt_llm", headers=server.secret.grpc_headers).config
    [table] = [tensor for tensor in loaded.input if tensor.name == "prompt_embedding_table"]
    assert dtype_of(table) == "FP32"
    table.data_type = model_config_pb2.DataType.TYPE_BF16
    assert list(loaded.input) == list(config.input)
    assert list(loaded.output) == list(config.output)
    assert loaded.parameters.keys() == config.parameters.keys()
    assert loaded.model_transaction_policy == config.model_transaction_policy
    assert loaded.dynamic_batching.default_queue_policy == config.dynamic_batching.default_queue_policy


@pytest.mark.server
def test_what_is_asked_of_the_ensemble_reaches_the_engine(server: RunningServer) -> None:
    """What is asked of the ensemble arrives: several answers in JSON, and the log probabilities of likely tokens."""
    messages = [{"role": "user", "content": "Answer in JSON."}]
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'
    texts = {
        "messages": json.dumps(messages),
        "guided_decoding_guide_type": "json_schema",
        "guided_decoding_guide": schema,
    }
    inputs = [
        InferInput(name, [1, 1], "BYTES").set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        for name, text in texts.items()
    ]
    for name, count in {"request_output_len": 32, "num_return_sequences": 3, "num_top_logprobs": 2}.items():
        inputs.append(InferInput(name, [1, 1], "INT32").set_data_from_numpy(np.array([[count]], np.int32)))
    responses: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    answers: dict[int, list[int]] = {}
    with InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer("internvideo2_5", inputs, enable_empty_final_response=True)
        final = False
        while not final:
            result, error = responses.get(timeout=60)
            assert error is None
            final = result.get_response().parameters["triton_final_response"].bool_param
            ids = result.as_numpy("output_ids").reshape(-1)
            answers[result.as_numpy("sequence_index").item()] = ids.tolist()
            assert result.as_numpy("top_logprob_ids").shape == (1, len(ids), 2)
    tokenizer = Tokenizer.from_file(str(server.engine / "tokenizer.json"))
    assert answers.keys() == {0, 1, 2}
    assert all(json.loads(tokenizer.decode(ids))["n"] in (1, 2) for ids in answers.values())


@pytest.mark.server
def test_stop_token_ids_and_ignore_eos_reach_the_engine_through_preprocessing(server: RunningServer) -> None:
    def answer(**more: np.ndarray[Any, Any]) -> list[int]:
        messages = np.array([[json.dumps([{"role": "user", "content": "Go on."}]).encode()]], dtype=np.object_)
        values = {"messages": messages, "request_output_len": np.array([[12]], np.int32), **more}
        inputs = [InferInput(n, list(v.shape), np_to_triton_dtype(v.dtype)).set_data_from_numpy(v) for n, v in values.items()]
        responses: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        with InferenceServerClient(server.grpc_url) as client:
            client.start_stream(lambda result, error: responses.put((result, error)))
            client.async_stream_infer("internvideo2_5", inputs)
            result, error = responses.get(timeout=60)
        if error is not None:
            raise error
        ids: list[int] = result.as_numpy("output_ids").reshape(-1).tolist()
        return ids

    whole = answer(ignore_eos=np.array([[True]]))
    assert len(whole) == 12
    stop = np.array([[whole[4]]], np.int32)
    assert answer(ignore_eos=np.array([[True]]), stop_token_ids=stop) == whole[: whole.index(whole[4]) + 1]
    with pytest.raises(InferenceServerException, match=r"\[INVALID_ARGUMENT param=stop_token_ids\]"):
        answer(stop_token_ids=np.array([[-5]], np.int32))
