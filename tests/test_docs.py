"""What the READMEs say is so: paths exist, settings are known, the test command is the one CI runs."""

import re

import pytest
from conftest import REPO

READMES = [REPO / "README.md", *REPO.glob("[a-z]*/README.md")]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_path_exists(readme):
    names = re.findall(r"[`(\s]((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|yaml|md|toml))\b", readme.read_text())
    assert names
    places = (readme.parent, REPO / "bradley_terry")  # the tree in the main README indents a folder's files below it
    missing = [name for name in names if not any((place / name).exists() for place in places)]
    assert missing == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_setting_is_known(readme):
    config = (REPO / "bradley_terry" / "config.yaml").read_text()
    for section, key in re.findall(r"\b(data|model|engine|optim|loss|trainer)\.(\w+)=", readme.read_text()):
        body = re.search(rf"^{section}:\n((?:  .*\n|\n)*)", config, flags=re.M)[1]
        assert re.search(rf"^  {key}:", body, flags=re.M), f"{section}.{key}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_environment_variable_is_known(readme):
    script = (REPO / "bradley_terry" / "run_bt.sh").read_text()
    for name in re.findall(r"\b([A-Z][A-Z_]{3,})=", readme.read_text()):
        assert re.search(rf"\b{name}\b", script), name


def test_no_file_is_longer_than_250_lines():
    files = [path for folder in ("bradley_terry", "common") for path in (REPO / folder).rglob("*.py")]
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 250} == {}


def test_no_folder_imports_a_method():
    for path in (REPO / "common").rglob("*.py"):
        assert not re.search(
            r"^\s*(?:from|import) (?:bradley_terry|dataset|engine|loss|train|evaluate)\b", path.read_text(), re.M
        )
