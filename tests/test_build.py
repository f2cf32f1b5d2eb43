"""build_scripts/build.py: what it would run for every preset, and the steps it is made of.

TensorRT-LLM cannot be installed where these tests run: its command lines are held against tables of its flags.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from build_scripts._engine_plan import EngineDtype, Plan, PlanError, Quantization, Sizes
from build_scripts._steps import Step, StepError
from build_scripts.build import plan_steps
from build_scripts.calibration_model import calibration_model
from internvideo_server.export.grammar import grammar_info
from tests.conftest import ROOT

SCRIPT = ROOT / "build_scripts" / "build.py"

# trtllm-build of TensorRT-LLM 1.2 (tensorrt_llm/commands/build.py, plugin/plugin.py): flag -> allowed values, None = a number
# or a path.
TRTLLM_BUILD_FLAGS: dict[str, tuple[str, ...] | None] = {
    "--checkpoint_dir": None,
    "--output_dir": None,
    "--gemm_plugin": ("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"),
    "--kv_cache_type": ("continuous", "paged", "disabled"),
    "--remove_input_padding": ("enable", "disable"),
    "--context_fmha": ("enable", "disable"),
    "--use_paged_context_fmha": ("enable", "disable"),
    "--use_fp8_context_fmha": ("enable", "disable"),
    "--max_batch_size": None,
    "--max_beam_width": None,
    "--max_input_len": None,
    "--max_seq_len": None,
    "--max_num_tokens": None,
    "--max_multimodal_len": None,
    "--workers": None,
}
# examples/models/core/llama/convert_checkpoint.py and examples/quantization/quantize.py of the same release.
CONVERT_FLAGS: dict[str, tuple[str, ...] | None] = {
    "--model_dir": None,
    "--output_dir": None,
    "--dtype": ("auto", "float16", "bfloat16", "float32"),
    "--tp_size": None,
    "--pp_size": None,
    "--use_weight_only": (),
    "--weight_only_precision": ("int8", "int4", "int8_gptq", "int4_gptq", "int4_awq"),
}
QUANTIZE_FLAGS: dict[str, tuple[str, ...] | None] = {
    "--model_dir": None,
    "--output_dir": None,
    "--dtype": ("auto", "float16", "bfloat16", "float32"),
    "--tp_size": None,
    "--pp_size": None,
    "--qformat": ("nvfp4", "fp8", "int8_sq", "int4_awq", "w4a8_awq", "int8_wo", "int4_wo", "full_prec"),
    "--kv_cache_dtype": ("int8", "fp8"),
    "--awq_block_size": None,
    "--calib_dataset": None,
    "--calib_size": None,
}


def flags_of(command: list[str]) -> dict[str, str]:
    """--flag -> value ("" for a switch)."""
    flags: dict[str, str] = {}
    for part in command:
        if part.startswith("--"):
            flags[part] = ""
        elif flags:
            flags[list(flags)[-1]] = part
    return flags


def check_against(command: list[str], table: dict[str, tuple[str, ...] | None]) -> dict[str, str]:
    flags = flags_of(command)
    assert flags.keys() <= table.keys()
    for flag, value in flags.items():
        allowed = table[flag]
        assert value == "" if allowed == () else value if allowed is None else value in allowed
    return flags


DEMO = SCRIPT.parent / "demo_model"


def dry_run(*arguments: str) -> list[list[str]]:
    command = [sys.executable, str(SCRIPT), str(DEMO), "--out", "/out", "--dry-run", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in result.stdout.splitlines()]


def command_of(lines: list[list[str]], program: str) -> list[str]:
    return next(line for line in lines if any(Path(part).name == program for part in line[:2]))


# ---- the old command line


def test_the_old_build_is_reproduced_with_its_length_of_text() -> None:
    """grps_trtllm's: int8 weight-only, bf16, batch 2, 128 frames, prompts of 6144, 8192 in all; today's flag names."""
    lines = dry_run("--quantization", "int8", "--max-batch-size", "2", "--max-frames", "128", "--max-text-tokens", "3200")
    flags = check_against(command_of(lines, "trtllm-build"), TRTLLM_BUILD_FLAGS)
    old = {
        "--gemm_plugin": "bfloat16",
        "--max_batch_size": "2",
        "--max_input_len": "6144",
        "--max_seq_len": "8192",
        "--max_num_tokens": "6144",
        "--max_multimodal_len": "4096",
        "--kv_cache_type": "paged",  # was --paged_kv_cache enable
    }
    assert old.items() <= flags.items()
    convert = flags_of(command_of(lines, "convert.py"))
    assert {"--quantization": "int8", "--dtype": "bfloat16", "--tp": "1", "--pp": "1"}.items() <= convert.items()


# ---- every preset


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("none", {"--gemm_plugin": "bfloat16"}),
        ("int8", {"--gemm_plugin": "bfloat16"}),
        ("fp8", {"--gemm_plugin": "auto", "--use_fp8_context_fmha": "enable"}),
        ("int4-awq", {"--gemm_plugin": "auto"}),
    ],
)
def test_dry_run_of_each_preset(quantization: str, expected: dict[str, str]) -> None:
    lines = dry_run("--quantization", quantization, "--tp", "2", "--pp", "2")
    flags = check_against(command_of(lines, "trtllm-build"), TRTLLM_BUILD_FLAGS)
    common = {"--kv_cache_type": "paged", "--remove_input_padding": "enable", "--use_paged_context_fmha": "enable"}
    assert {**common, **expected, "--workers": "4", "--max_beam_width": "1"}.items() <= flags.items()
    assert ("--use_fp8_context_fmha" in flags) == (quantization == "fp8")
    assert flags_of(command_of(lines, "convert.py"))["--quantization"] == quantization
    programs = [Path(line[1]).stem if line[0] == sys.executable else line[0] for line in lines]
    calibration = ["calibration_model"] if quantization in ("fp8", "int4-awq") else []
    assert programs == [
        *("check_checkpoint", "export_llm", *calibration, "convert", "mv"),
        *("trtllm-build", "cp", "export_grammar", "mv", "render_repository"),
    ]


@pytest.mark.parametrize(
    ("quantization", "script", "table", "expected"),
    [
        ("none", "convert_checkpoint.py", CONVERT_FLAGS, {}),
        ("int8", "convert_checkpoint.py", CONVERT_FLAGS, {"--use_weight_only": "", "--weight_only_precision": "int8"}),
        ("fp8", "quantize.py", QUANTIZE_FLAGS, {"--qformat": "fp8", "--kv_cache_dtype": "fp8", "--calib_size": "64"}),
        ("int4-awq", "quantize.py", QUANTIZE_FLAGS, {"--qformat": "int4_awq", "--awq_block_size": "128"}),
    ],
)
def test_dry_run_through_the_example_scripts(
    quantization: str, script: str, table: dict[str, tuple[str, ...] | None], expected: dict[str, str]
) -> None:
    lines = dry_run("--quantization", quantization, "--trtllm-examples", "/app/examples", "--tp", "2", "--calib-size", "64")
    command = command_of(lines, script)
    assert command[1].startswith("/app/examples/")
    flags = check_against(command[2:], table)
    assert {**expected, "--tp_size": "2", "--dtype": "bfloat16"}.items() <= flags.items()
    assert flags["--output_dir"] == "/out/trtllm_checkpoint.part"
    assert flags["--model_dir"] == ("/out/export/calibration" if script == "quantize.py" else "/out/export/llama")


def test_dry_run_needs_the_checkpoint_alone_and_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), str(DEMO), "--out", str(out), "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": ""})
    assert str(out / "engine.part") in result.stdout
    assert "max_multimodal_len 4096 = batch 2 x 128 frames x 16 rows" in result.stderr  # the numbers are explained
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("checkpoint", "arguments", "said"),
    [
        ("none", [], "none"),
        (str(DEMO), ["--tp", "3"], "--tp 3 does not divide the language model's num_attention_heads 4"),
        (str(DEMO), ["--pp", "3"], "--pp 3 does not divide the language model's num_hidden_layers 4"),
    ],
)
def test_dry_run_refuses_what_could_not_be_built(tmp_path: Path, checkpoint: str, arguments: list[str], said: str) -> None:
    command = [sys.executable, str(SCRIPT), checkpoint, "--out", str(tmp_path / "out"), "--dry-run", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr


# ---- sizes


def test_sizes_beyond_the_trained_positions_are_refused_with_the_reason() -> None:
    with pytest.raises(PlanError, match=r"max_seq_len 32769, more than 32768: the export drops the model's dynamic RoPE scaling"):
        Sizes(max_frames=128, max_text_tokens=32769 - 128 * 23 - 2048)
    assert Sizes(max_frames=128, max_text_tokens=32768 - 128 * 23 - 2048).max_seq_len == 32768


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_frames": 6}, "--max-frames must be a positive multiple of 4"),
        ({"max_frames": 0}, "--max-frames must be a positive multiple of 4"),
        ({"max_batch_size": 0}, "--max-batch-size must be at least 1"),
        ({"max_text_tokens": 0}, "--max-text-tokens must be at least 1"),
        ({"max_output_tokens": -1}, "--max-output-tokens must be at least 1"),
    ],
)
def test_sizes_out_of_range_are_refused_by_flag(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Sizes(**arguments)


@given(
    batch=st.integers(1, 64),
    frames=st.integers(1, 300).map(lambda groups: 4 * groups),
    text=st.integers(1, 8000),
    output=st.integers(1, 8000),
)
def test_every_request_that_fits_the_sizes_fits_the_engine(batch: int, frames: int, text: int, output: int) -> None:
    try:
        sizes = Sizes(batch, frames, text, output)
    except PlanError:
        assert frames * 24 + text + output > 32768
        return
    limits = sizes.limits("bfloat16", 92560, 4096)
    assert limits.max_rows == frames * 16
    # "FrameN: <img>" + 16 rows + "</img>\n": 4 tokens for the words, one more for each further three digits of N.
    prompt = sum(4 + (len(str(number)) - 1) // 3 + 19 for number in range(1, frames + 1)) + text
    assert prompt <= limits.max_input_len
    assert prompt + output <= limits.max_seq_len
    assert limits.max_input_len < limits.max_seq_len <= 32768


# ---- steps


def echo_step(out: Path, text: str, inputs: list[Path]) -> Step:
    program = "import sys, pathlib; pathlib.Path(sys.argv[1], 'made').write_text(sys.argv[2]); print(sys.argv[2])"
    command = [sys.executable, "-c", program, str(out.with_name(f"{out.name}.part")), text]
    return Step("writing", [command], output=out, inputs=inputs)


def test_a_step_is_skipped_while_its_output_is_current(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_text("1")
    lines: list[str] = []

    def run(text: str, context: dict[str, str], force: bool = False) -> bool:
        lines.clear()
        echo_step(out, text, [source]).run(lines.append, context, force)
        return lines != ["writing: current, skipped"]

    assert run("a", {"gpu": "H200"})
    assert not run("a", {"gpu": "H200"})
    assert run("a", {"gpu": "L40S"})  # an engine is for one kind of GPU
    assert run("b", {"gpu": "L40S"})  # other flags
    source.write_text("2")
    assert run("b", {"gpu": "L40S"})  # another checkpoint
    assert run("b", {"gpu": "L40S"}, force=True)
    assert (out / "made").read_text() == "b"


def test_a_failed_step_leaves_the_old_output_and_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    echo_step(out, "whole", []).run(lambda line: None, {})
    part = str(out.with_name("out.part"))
    program = "import sys, pathlib; pathlib.Path(sys.argv[1], 'half').touch(); sys.exit(3)"
    failing = Step("building", [[sys.executable, "-c", program, part]], output=out)
    with pytest.raises(StepError, match=r"building: python\S* ended with exit code 3"):
        failing.run(lambda line: None, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (out / "made").read_text() == "whole"


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    step = Step("building", [["trtllm-build-that-is-not-there"]], output=tmp_path / "out")
    with pytest.raises(StepError, match="trtllm-build-that-is-not-there is not installed: run this inside the container"):
        step.run(lambda line: None, {})


# ---- the files that only the production engine needs


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from internvideo_server.export.tokenizer import export_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    export_tokenizer(checkpoint, path)
    return path


def test_calibration_texts_start_with_the_start_token(tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tmp_path / "llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    calibration_model(model, tokenizer, tmp_path / "calibration")
    calibration_model(model, tokenizer, tmp_path / "calibration")  # again: replaced
    loaded = AutoTokenizer.from_pretrained(tmp_path / "calibration", padding_side="left")
    encoded = loaded(["a red panda", "a red panda climbs up the tree"], padding=True)["input_ids"]
    own = Tokenizer.from_file(str(tokenizer)).encode("a red panda", add_special_tokens=False).ids
    assert encoded[0][-len(own) - 1 :] == [1, *own]
    assert encoded[1][0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration", "llama"]


def test_grammar_info_has_every_piece_in_its_place_and_no_control_token(checkpoint: Path, tokenizer: Path) -> None:
    loaded = Tokenizer.from_file(str(tokenizer))
    vocab_size = json.loads((checkpoint / "config.json").read_text())["llm_config"]["vocab_size"]
    end = [loaded.token_to_id("<|im_end|>"), loaded.token_to_id("<|im_start|>")]
    info = grammar_info(loaded, end, vocab_size)
    encoded = info["encoded_vocab"]
    assert len(encoded) == vocab_size
    assert info["stop_token_ids"] == end
    assert json.loads(info["tokenizer_str"])["decoder"]["type"] == "Sequence"  # with ByteFallback: xgrammar's vocabulary type
    assert any(decoder["type"] == "ByteFallback" for decoder in json.loads(info["tokenizer_str"])["decoder"]["decoders"])
    for name in ("<s>", "</s>", "<img>", "<IMG_CONTEXT>"):
        assert encoded[loaded.token_to_id(name)] == ""  # xgrammar's sign for a special token
    assert encoded[loaded.token_to_id("<0x41>")] == "<0x41>"
    assert all(piece == "" or loaded.token_to_id(piece) == i for i, piece in enumerate(encoded))


def test_xgrammar_reads_the_grammar_info_as_the_tokenizer_decodes(checkpoint: Path, tokenizer: Path) -> None:
    """As TensorRT-LLM hands it over (``guidedDecoder.cpp``): the vocabulary's type comes from ``tokenizer_str``."""
    xgrammar = pytest.importorskip("xgrammar")
    loaded = Tokenizer.from_file(str(tokenizer))
    vocab_size = json.loads((checkpoint / "config.json").read_text())["llm_config"]["vocab_size"]
    end = loaded.token_to_id("<|im_end|>")
    info = grammar_info(loaded, [end], vocab_size)
    kind = xgrammar.TokenizerInfo._detect_metadata_from_hf(info["tokenizer_str"])
    read = xgrammar.TokenizerInfo(
        info["encoded_vocab"],
        kind["vocab_type"],
        stop_token_ids=info["stop_token_ids"],
        add_prefix_space=kind["add_prefix_space"],
    )
    assert (read.vocab_size, read.stop_token_ids) == (vocab_size, [end])
    for token, piece in enumerate(read.decoded_vocab):
        if info["encoded_vocab"][token] and token != end:
            text = loaded.decode([token], skip_special_tokens=False)
            assert piece.decode(errors="replace") == text or "\ufffd" in text, (token, piece, text)
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(read).compile_regex("[0-9]a"))
    mask = xgrammar.allocate_token_bitmask(1, vocab_size)
    matcher.fill_next_token_bitmask(mask)
    allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little"))
    assert {loaded.decode([token])[:1] for token in allowed.tolist()} == set("0123456789")


def test_grammar_info_refuses_a_tokenizer_larger_than_the_vocabulary(tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="goes up to id 1515, beyond the model's vocabulary of 1000"):
        grammar_info(Tokenizer.from_file(str(tokenizer)), [2], 1000)


def test_plans_name_every_step_with_absolute_paths() -> None:
    plan = Plan(Sizes(), Quantization.FP8, EngineDtype.FLOAT16)
    for step in plan_steps(Path("/c"), Path("/o"), plan):
        for command in step.commands:
            assert all(not part.startswith("./") for part in command)
