"""model_repository/tensorrt_llm/config.pbtxt against what NVIDIA's C++ backend declares and reads."""

from __future__ import annotations

import json
import queue
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException

from internvideo_server.launch import RunningServer
from tests.conftest import ROOT
from tests.upstream_contract import INPUTS, KNOWN_PARAMETERS, MANDATORY_PARAMETERS, OUTPUTS, REQUIRED_PARAMETERS, Tensor


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
    assert {tensor.name for tensor in config.input} == {name for name, tensor in INPUTS.items() if not tensor.left_out}


def test_declares_upstreams_outputs_and_gives_a_reason_for_each_it_leaves_out(config: Any) -> None:
    assert {tensor.name for tensor in config.output} == {name for name, tensor in OUTPUTS.items() if not tensor.left_out}


@pytest.mark.parametrize(("name", "upstream"), [item for item in INPUTS.items() if not item[1].left_out])
def test_each_input_is_declared_as_upstream_does(config: Any, name: str, upstream: Tensor) -> None:
    tensor = next(tensor for tensor in config.input if tensor.name == name)
    scalar = tensor.HasField("reshape")
    assert tuple(tensor.reshape.shape) == ()
    declared = (tuple(tensor.dims), tensor.optional, scalar, tensor.allow_ragged_batch)
    assert declared == (upstream.dims, upstream.optional, upstream.scalar, upstream.ragged)
    assert upstream.dtype in (None, dtype_of(tensor))


@pytest.mark.parametrize(("name", "upstream"), [item for item in OUTPUTS.items() if not item[1].left_out])
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
    assert parameters.keys() <= KNOWN_PARAMETERS


def test_part_of_the_memory_is_left_to_the_vision_tower(parameters: dict[str, str]) -> None:
    assert 0 < float(parameters["kv_cache_free_gpu_mem_fraction"]) <= 0.85


def test_paths_are_those_of_the_container(parameters: dict[str, str]) -> None:
    assert parameters["gpt_model_path"] == "/engine"
    assert parameters["xgrammar_tokenizer_info_path"] == "/engine/xgrammar_tokenizer_info.json"


@pytest.mark.server
def test_triton_loads_the_configuration_as_it_is_written(server: RunningServer, config: Any) -> None:
    """Triton 2.51, with the embedded engine behind the backend's name; the launcher sets the dtype and the paths."""
    with InferenceServerClient(server.grpc_url) as client:
        loaded = client.get_model_config("tensorrt_llm").config
    [table] = [tensor for tensor in loaded.input if tensor.name == "prompt_embedding_table"]
    assert dtype_of(table) == "FP32"
    table.data_type = model_config_pb2.DataType.TYPE_BF16
    assert list(loaded.input) == list(config.input)
    assert list(loaded.output) == list(config.output)
    assert loaded.parameters.keys() == config.parameters.keys()
    assert loaded.model_transaction_policy == config.model_transaction_policy
    assert loaded.dynamic_batching.default_queue_policy == config.dynamic_batching.default_queue_policy


@pytest.mark.server
def test_guided_decoding_reaches_the_engine_through_the_ensemble(server: RunningServer) -> None:
    """The embedded engine has no grammars, and says so in NVIDIA's words for an engine without a guided decoder."""
    messages = [{"role": "user", "content": "Answer in JSON."}]
    texts = {"messages": json.dumps(messages), "guided_decoding_guide_type": "json", "guided_decoding_guide": ""}
    inputs = [InferInput(name, [1, 1], "BYTES") for name in texts]
    for tensor, text in zip(inputs, texts.values(), strict=True):
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    inputs.append(InferInput("request_output_len", [1, 1], "INT32").set_data_from_numpy(np.array([[8]], np.int32)))
    responses: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer("internvideo2_5", inputs, enable_empty_final_response=True)
        _, error = responses.get(timeout=60)
    assert isinstance(error, InferenceServerException)
    assert "GuidedDecoder is not setup" in str(error)
