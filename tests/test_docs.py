"""What the READMEs say is so: paths exist, settings are known, the test command is the one CI runs."""

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import REPO
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_judge_config import VERL_CONFIG
from test_method_config import SCRIPTS as METHODS

LOOPS = ("bradley_terry", "sft")  # these have training loops of their own
READMES = [REPO / "README.md", *REPO.glob("[a-z]*/README.md"), REPO / "common" / "benchmarks" / "README.md"]


def methods_of(readme) -> list[str]:
    """A folder's README speaks of that method, the main one of all."""
    return [readme.parent.name] if readme.parent.name in METHODS else list(METHODS)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_path_exists(readme):
    names = re.findall(r"[`(\s]((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|yaml|md|toml))\b", readme.read_text())
    assert names and not re.search(r"@\w+@", readme.read_text())  # a figure to be filled in
    # the tree in the main README indents a folder's files below it
    places = [readme.parent, REPO, REPO / "common", *(REPO / method for method in methods_of(readme))]
    made = ("outputs/settings.yaml", "relevance/prompt.py", "ranker/prompt.py")  # by a run, by a copy
    missing = [name for name in names if name not in made and not any((place / name).exists() for place in places)]
    assert missing == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_setting_is_known(readme, monkeypatch):
    monkeypatch.setenv("VERL_CONFIG", VERL_CONFIG)
    sections = "data|model|engine|optim|loss|trainer|actor_rollout_ref|algorithm"
    # verl's own commands are composed against verl, in test_rl_reward.py
    ours = re.sub(r"python -m verl\.trainer(?:[^\n]*\\\n)*[^\n]*", "", readme.read_text())
    settings = re.findall(rf"[\s`'\"]((?:{sections})\.[\w.]+)=", ours)
    configs = []
    for method in methods_of(readme) if settings else ():
        with initialize_config_dir(str(REPO / method), version_base=None):
            configs.append(compose("config"))
    for setting in settings:
        section, _, key = setting.rpartition(".")
        places = [OmegaConf.select(config, section) for config in configs]
        assert any(place is not None and key in set(place) for place in places), setting


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_environment_variable_is_known(readme):
    readers = [REPO / method / METHODS[method] for method in methods_of(readme)]
    readers += [REPO / "common" / name for name in ("cluster.py", "network.py")]  # Ray's token, the interface
    scripts = [path.read_text() for path in readers]
    for name in re.findall(r"\b([A-Z][A-Z_]{3,})=", readme.read_text()):
        assert any(re.search(rf"\b{name}\b", script) for script in scripts), name


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_option_is_known(readme):
    """`python -m sft.prepare_data --source demo` and the like: the module of the command knows each option."""
    commands = re.findall(r"python -m ([\w.]+)((?:\s--[\w-]+(?:[ =][^\s`-][^\s`]*)?)+)", readme.read_text())
    for module, options in commands:
        if module.split(".")[0] not in (*METHODS, "common"):
            continue
        text = (REPO / f"{module.replace('.', '/')}.py").read_text()
        if "from common.judging.asking import" in text:
            text += (REPO / "common" / "judging" / "asking.py").read_text()
        if "from common.judging.teacher import" in text:
            text += "".join((REPO / "common" / "judging" / name).read_text() for name in ("teacher.py", "asking.py"))
        if "from common.benchmarks.choosing import" in text:
            text += (REPO / "common" / "benchmarks" / "choosing.py").read_text()
        if "from common.benchmarks.overlap import" in text:
            text += (REPO / "common" / "benchmarks" / "overlap.py").read_text()
        if "from common.grading.rl import" in text:
            text += (REPO / "common" / "grading" / "rl.py").read_text()
        if "from .score import add_scoring" in text:
            text += (REPO / module.split(".")[0] / "score.py").read_text()
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in text, f"{module} {option}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_module_that_a_command_or_example_names_exists(readme):
    ours = "|".join([*METHODS, "common"])
    modules = re.findall(rf"python -m ((?:{ours})\.[\w.]+)", readme.read_text())
    imports = re.findall(rf"^from ((?:{ours})[\w.]*) import ([\w, ]+)", readme.read_text(), re.M)
    for module in modules:
        assert importlib.util.find_spec(module), module
    for module, names in imports:
        text = Path(importlib.util.find_spec(module).origin).read_text()  # not imported: it may need another package
        for name in names.split(","):
            defined = rf"^(class |(async )?def |from .* import .*)?\b{name.strip()}\b"
            assert re.search(defined, text, re.M), (module, name)
    assert modules


def test_the_training_loops_stay_line_aligned():
    """A reader learns the second method by `diff`: most lines of one loop are lines of the other, in the same order."""
    import difflib

    first, second = ((REPO / method / "train.py").read_text().splitlines() for method in LOOPS)
    assert difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() > 2 / 3
