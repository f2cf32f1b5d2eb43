"""Make a TensorRT-LLM checkpoint from the exported Llama directory, through the installed package's own Llama path.

Runs with the Python of NVIDIA's container and needs nothing but TensorRT-LLM. Written for TensorRT-LLM 1.2;
``build.py --trtllm-examples`` does the same through that release's example scripts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

QUANTIZATIONS = ("none", "int8", "fp8", "int4-awq")
CALIBRATED = ("fp8", "int4-awq")


def convert(
    model: Path,
    out: Path,
    *,
    dtype: str,
    quantization: str,
    tp: int = 1,
    pp: int = 1,
    calib_dataset: str = "cnn_dailymail",
    calib_size: int = 512,
) -> None:
    """Write ``config.json`` and a ``rank*.safetensors`` for each rank.

    Args:
        model: LlamaForCausalLM directory (``export_llm.py``; for `CALIBRATED`, ``calibration_model.py``).
        out: Directory to write into.
        dtype: ``bfloat16`` or ``float16``.
        quantization: One of `QUANTIZATIONS`.
        tp: Tensor parallel size.
        pp: Pipeline parallel size.
        calib_dataset: Name or directory of a text data set.
        calib_size: Samples of it.
    """
    from tensorrt_llm.mapping import Mapping
    from tensorrt_llm.models import LLaMAForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    world_size = tp * pp
    quant_config = _quant_config(quantization)
    if quantization in CALIBRATED:
        LLaMAForCausalLM.quantize(
            str(model),
            str(out),
            dtype=dtype,
            mapping=Mapping(world_size=world_size, tp_size=tp, pp_size=pp),
            quant_config=quant_config,
            device="cuda",
            calib_dataset=calib_dataset,
            calib_batches=calib_size,
        )
        return
    for rank in range(world_size):
        llama = LLaMAForCausalLM.from_hugging_face(
            str(model),
            dtype,
            mapping=Mapping(world_size=world_size, rank=rank, tp_size=tp, pp_size=pp),
            quant_config=quant_config,
        )
        llama.save_checkpoint(str(out), save_config=rank == 0)
        del llama  # before the next rank's weights are read


def _quant_config(quantization: str) -> Any:
    from tensorrt_llm.models.modeling_utils import QuantConfig
    from tensorrt_llm.quantization import QuantAlgo

    if quantization == "int8":
        return QuantConfig(quant_algo=QuantAlgo.W8A16)
    if quantization == "fp8":
        return QuantConfig(quant_algo=QuantAlgo.FP8, kv_cache_quant_algo=QuantAlgo.FP8)
    if quantization == "int4-awq":
        return QuantConfig(quant_algo=QuantAlgo.W4A16_AWQ, group_size=128, has_zero_point=False, pre_quant_scale=True)
    return QuantConfig()


def main() -> None:
    """Parse the command line; argparse, because the container's Python need not have more."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="LlamaForCausalLM directory")
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="int8")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline parallel size")
    parser.add_argument("--calib-dataset", default="cnn_dailymail", help="name or directory of a text data set")
    parser.add_argument("--calib-size", type=int, default=512, help="samples of it")
    arguments = vars(parser.parse_args())
    try:
        import tensorrt_llm  # noqa: F401 - it takes long, and may be absent
    except ImportError as error:
        sys.exit(
            f"error: TensorRT-LLM cannot be imported with {sys.executable} ({error}): run inside NVIDIA's container "
            "tritonserver:26.07-trtllm-python-py3 with its own Python, or pass --trtllm-examples to build.py"
        )
    convert(arguments.pop("model"), arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
