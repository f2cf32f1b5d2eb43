"""What the pages say is so: options, files, make targets and error texts that they name exist; each command is run by a test."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from internvideo_client.cli import app
from tests.conftest import ROOT
from tests.docs_blocks import PAGES, Block, blocks

ALL = list(blocks())
CODE = "\n".join(
    path.read_text()
    for folder in ("server", "client", "build_scripts", "model_repository", "docker")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".pbtxt", ".js", ".sh")
)
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()


def test_every_block_is_seen() -> None:
    fences = sum(len(re.findall(r"^```(?:bash|python|sh|console)$", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert len(ALL) == fences
    assert len([block for block in ALL if block.why is None]) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_commands_outside_of_blocks(page: Path) -> None:
    assert not re.search(r"^ {4}(?:\$ |internvideo |python |pip |make |docker )", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", [block for block in ALL if block.why == "tested"], ids=str)
def test_the_test_that_runs_a_block_exists(block: Block) -> None:
    assert block.what
    assert (ROOT / block.what).is_file()


def _invocations() -> list[tuple[str, list[str]]]:
    """Each ``internvideo COMMAND ...`` in a block or in code within the text, with its options."""
    found = []
    for block in ALL:
        if block.kind != "python":
            found += [(str(block), line) for line in block.commands()]
    for page in PAGES:
        found += [(page.name, span) for span in re.findall(r"`(internvideo [^`]+)`", page.read_text())]
    calls = []
    for where, line in found:
        for call in re.findall(r"(?:^|[\s/;|])internvideo ((?!-)[a-z].*)", line):
            words = shlex.split(call.replace("\\|", "|"), comments=True)
            calls.append(
                (where, words[: next((at for at, word in enumerate(words) if word in ("|", ";", "&&", "<", ">")), None)])
            )
    return calls


CALLS = _invocations()


@pytest.mark.parametrize(("where", "words"), CALLS, ids=[f"{where}-{words[0]}-{at}" for at, (where, words) in enumerate(CALLS)])
def test_commands_and_options_exist(where: str, words: list[str]) -> None:
    command: Any = (root := typer.main.get_command(app))
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]
    assert command is not root, f"{where}: internvideo {' '.join(words)} is no command"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    options = words[: words.index("--")] if "--" in words else words
    assert {word.partition("=")[0] for word in options if word.startswith("--")} <= known, where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_make_serve_is_internvideo_serve_with_the_options(page: str) -> None:
    (line,) = re.findall(r"^make serve .*", (ROOT / page).read_text(), re.MULTILINE)
    words = [word.replace("$PWD", "/here") for word in shlex.split(line, comments=True)]
    words += ["--dry-run", "--no-print-directory", "--old-file=.venv/.setup"]  # under `make test` it would name its folder
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ".venv/bin/internvideo serve --allowed-local-media-path /here/examples\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    roots = "docker|build_scripts|benchmarks|tests|examples|docs|client|server|model_repository"
    text = page.read_text()
    if page.name == "migration.md":  # the left column has another project's files
        text = "\n".join(line.rpartition(" | ")[2] for line in text.splitlines())
    named = {name for name in re.findall(rf"`((?:{roots})/[\w./-]+)`", text) if "NAME" not in name}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


OURS = TROUBLE[: TROUBLE.index("## TensorRT-LLM")]
#: Other programs' words, and what has no text.
THEIRS = (
    "No matching distribution",
    "HTTP ",
    "lock_exception",
    "No space left",
    "CUDA out of memory",
    "Stub process",
    "shared memory pool",
)


@pytest.mark.parametrize("text", re.findall(r"^\| (`.*?) \|", OURS, re.MULTILINE))
def test_an_error_text_of_the_project_is_in_its_code(text: str) -> None:
    flat = re.sub(r"\s+", " ", re.sub(r"[\"'`]\s*\n\s*f?[\"'`]", "", CODE) + (ROOT / "Makefile").read_text())
    for span in re.findall(r"`([^`]+)`", text):
        if any(words in span for words in THEIRS):
            continue
        for piece in re.split(r"\.\.\.|\b[NX]\b|\bx\b|'x'", span.replace("\\|", "|")):
            assert len(piece.strip(" '(,")) < 4 or piece.strip(" '(,:") in flat, f"{piece!r} of {span!r}"


def test_readme_is_one_screen_and_the_chinese_one_says_the_same() -> None:
    english, chinese = (ROOT / "README.md").read_text(), (ROOT / "README.zh.md").read_text()
    assert len(english.splitlines()) < 100
    shape = re.compile(r"^(#+ |!\[|```|<!-- .*|\|)|\]\(([^)]*)\)", re.MULTILINE)

    def skeleton(text: str) -> list[tuple[str, str]]:
        return [found for found in shape.findall(text) if not found[1].startswith("README")]

    assert sorted(skeleton(english)) == sorted(skeleton(chinese))
    commands = [[block.text for block in ALL if block.page.name == name and block.why] for name in ("README.md", "README.zh.md")]
    assert [re.sub(r"#.*", "", text) for text in commands[0]] == [re.sub(r"#.*", "", text) for text in commands[1]]
    numbers = [sorted(re.findall(r"\d+(?:\.\d+)? (?:s|GB)\b", text)) for text in (english, chinese)]
    assert numbers[0] == numbers[1]
