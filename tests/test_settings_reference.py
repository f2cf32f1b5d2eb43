"""What is generated from the settings is what they say now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from build_scripts.settings_reference import CONTAINER_SETS, MOST_USED, environment_file, files
from internvideo_server.settings import ServeSettings, variable
from tests.conftest import ROOT


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text() == files()[path], "run: python build_scripts/settings_reference.py"


def test_the_quick_start_shows_the_most_used_ones_and_names_no_option_that_is_not_there() -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text()
    shown = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", text, re.DOTALL)
    assert shown
    assert len(re.findall(r"^\| `--", shown[1], re.MULTILINE)) == len(MOST_USED)


def test_every_setting_of_a_container_is_in_its_environment_file() -> None:
    named = re.findall(r"^#(INTERNVIDEO_\w+)=", environment_file(), re.MULTILINE)
    assert sorted(named) == sorted(variable(name) for name in ServeSettings.model_fields if name not in CONTAINER_SETS)


def test_no_setting_takes_a_variable_that_means_something_else() -> None:
    taken = {
        "INTERNVIDEO_HOME",
        "INTERNVIDEO_CACHE",
        "INTERNVIDEO_RUN_ID",
        "INTERNVIDEO_ENTERED",
        "INTERNVIDEO_URL",
        "INTERNVIDEO_API_KEY",
    }
    assert not taken & {variable(name) for name in ServeSettings.model_fields}
