"""docs/production.md: its figures and its command lines are those of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts._engine_plan import Plan, Quantization, Sizes, engine_bytes
from build_scripts.checkpoint_sizes import DIMENSIONS, Size, model_config
from build_scripts.sizing import gpu_bytes, small_cards, table
from tests.conftest import ROOT
from tests.test_docker import adapter_flags, serve_flags

TEXT = (ROOT / "docs" / "production.md").read_text()
LLM = model_config(DIMENSIONS[Size.FULL], "bfloat16")["llm_config"]


def commands() -> list[str]:
    """The lines of the page's shell blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines() if line.strip()]


def flags_after(word: str) -> set[str]:
    """The flags that follow a word in any command."""
    return {
        flag for line in commands() if f" {word} " in line for flag in re.findall(r"--[a-z-]+", line.partition(f" {word} ")[2])
    }


def help_of(*command: str) -> set[str]:
    environment = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1", "PATH": ""}
    result = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, check=True, env=environment)
    return set(re.findall(r"--[a-z-]+", result.stdout))


def test_the_sizing_table_is_what_the_script_computes() -> None:
    shown = re.search(r"<!-- sizing -->\n(.*?)\n<!-- /sizing -->", TEXT, re.DOTALL)
    assert shown
    assert shown[1] == table([64, 128, 256, 512], [1, 2, 8])


def test_the_table_of_small_cards_is_what_the_script_computes() -> None:
    shown = re.search(r"<!-- caps -->\n(.*?)\n<!-- /caps -->", TEXT, re.DOTALL)
    assert shown
    assert shown[1] == small_cards([16, 24], [1, 2, 8])


def test_engine_sizes_are_those_of_the_real_models_parameters() -> None:
    parameters = 7_737_839_616  # of the language model
    assert engine_bytes(LLM, Quantization.NONE) == 2 * parameters
    matrices = 32 * 4096 * (6144 + 4096 + 3 * 14336)
    rest = parameters - matrices
    assert engine_bytes(LLM, Quantization.FP8) == matrices + 2 * rest
    assert 1.0 < engine_bytes(LLM, Quantization.INT8) / (matrices + 2 * rest) < 1.001  # scales
    assert 1.0 < engine_bytes(LLM, Quantization.INT4_AWQ) / (matrices / 2 + 2 * rest) < 1.03


def test_more_of_anything_needs_more_memory() -> None:
    def total(**changes: int) -> int:
        tp = changes.pop("tp", 1)
        return sum(gpu_bytes(Plan(Sizes(**changes), tp=tp)).values())

    assert total() < total(max_batch_size=3) < total(max_batch_size=3, max_frames=256)
    assert total(tp=2) < total()


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("serve", serve_flags),
        ("internvideo_client.adapter", adapter_flags),
        ("build", lambda: help_of(str(ROOT / "build_scripts" / "build.py"))),
        ("doctor", lambda: help_of("-c", "from internvideo_client.cli import main; main()", "doctor")),
        ("chat", lambda: help_of("-c", "from internvideo_client.cli import main; main()", "chat")),
    ],
)
def test_commands_use_flags_that_exist(word: str, known: object) -> None:
    used = flags_after(word)
    if word == "build":
        used -= {"--gpus"}
    assert used
    assert callable(known)
    assert used <= known()


def test_files_that_the_page_names_exist() -> None:
    names = set(re.findall(r"`((?:docker|build_scripts|model_repository)/[A-Za-z0-9_./-]+)`", TEXT))
    assert len(names) > 5
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_numbers_of_the_sizes_are_right() -> None:
    sizes = Sizes()
    assert (sizes.max_input_len, sizes.max_seq_len, sizes.max_multimodal_len) == (4992, 7040, 4096)
    for line in ("128 x 23 + 2048 = 4992", "4992 + 2048 = 7040", "2 x 128 x 16 = 4096"):
        assert line in TEXT
    int8 = engine_bytes(LLM, Quantization.NONE) + 2 * engine_bytes(LLM, Quantization.INT8)
    plain = 3 * engine_bytes(LLM, Quantization.NONE)
    assert f"{int8 / 1e9:.0f} GB more with int8, {plain / 1e9:.0f} GB without" in TEXT


def test_the_page_says_what_was_not_run() -> None:
    assert TEXT.count("**not run**") + TEXT.count("**never") + TEXT.count("**not loaded**") >= 6
    assert not re.search(r"/work/|/root/", Path(ROOT / "docs" / "production.md").read_text())


def test_the_unit_of_systemd_is_valid_and_its_flags_exist(tmp_path: Path) -> None:
    unit = re.search(r"```ini\n(\[Unit\].*?)```", TEXT, re.DOTALL)[1]  # type: ignore[index]
    start = re.search(r"ExecStart=(\S+) (.*\n.*)", unit)
    assert start
    assert set(re.findall(r"--[a-z-]+", start[2])) <= serve_flags()
    if shutil.which("systemd-analyze"):
        file = tmp_path / "internvideo.service"
        file.write_text(unit.replace(start[1], sys.executable))  # where it is installed here
        checked = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
