"""Which file `--config` names, and what a recipe can import."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from vit_jax import config, recipes
from vit_jax.errors import UserError

LIKE_QUICKSTART = """
from configs import {module}
def get_config(seed="3"):
    config = {module}.get_config()
    config.seed = int(seed)
    return config
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str = LIKE_QUICKSTART, module: str = "quickstart") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(module=module))
    return path


def load(recipe: str) -> dict[str, Any]:
    return config.load(recipe, []).to_dict()


@pytest.mark.parametrize("recipe", ["imagenet1k.py:S/32", "configs/imagenet1k.py:S/32"])
def test_a_recipe_that_comes_with_vit_jax(
    empty: Path, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    recipes._tell.cache_clear()
    assert load(recipe)["model"]["variant"] == "S/32"
    load(recipe)
    assert not [path for path in sys.path if Path(path).name == "vit_jax"]
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert "there is no file" in told[0] and "imagenet1k.py, which comes" in told[0]


@pytest.mark.parametrize("recipe", ["quickstart.py", "configs/quickstart.py"])
def test_a_file_that_exists_wins(
    empty: Path, recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(empty / recipe, "")
    path = recipes.find(recipe)
    assert path.resolve() == empty / recipe
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("folder", [".", "configs", "mine", "mine/configs"])
@pytest.mark.parametrize("module", ["quickstart", "own"])
def test_recipes_anywhere_import_each_other(
    empty: Path, monkeypatch: pytest.MonkeyPatch, folder: str, module: str
) -> None:
    """One that comes with vit_jax, and one beside it that is the user's."""
    path = write(empty / folder / "recipe.py", module=module)
    if module == "own":
        beside = folder if folder.endswith("configs") else f"{folder}/configs"
        write(empty / beside / "own.py")
    for elsewhere in (empty, Path("/")):
        monkeypatch.chdir(elsewhere)
        assert load(f"{path}:7")["seed"] == 7


def test_the_nearest_configs_are_taken(empty: Path) -> None:
    """Also after a recipe of another folder, and by one that comes with vit_jax."""
    for name, width in (("a", 64), ("b", 32)):
        write(empty / name / "recipe.py")
        own = "import configs.finetune\nfrom configs import imagenet1k\n"
        own += f"def get_config():\n  c = imagenet1k.get_config('Ti/{width}')\n"
        write(empty / name / "configs" / "quickstart.py", own + "  return c\n")
    variants = [load(f"{name}/recipe.py")["model"]["variant"] for name in "aba"]
    assert variants == ["Ti/64", "Ti/32", "Ti/64"]
    write(empty / "configs" / "quickstart.py", "1 / 0")
    assert load("fashion_mnist.py")["data"]["name"] == "idx"


def test_a_folder_of_recipes_may_have_code_of_its_own(empty: Path) -> None:
    write(empty / "configs" / "__init__.py", "WIDTH = 64\n")
    text = "from configs import WIDTH\n" + LIKE_QUICKSTART
    write(empty / "configs" / "recipe.py", text + "    config.model.width = WIDTH\n")
    assert load("configs/recipe.py")["batch_size"] == 32


def test_a_package_configs_of_the_program_stays(empty: Path) -> None:
    write(empty / "configs" / "__init__.py", "STATE = []\n")
    write(empty / "elsewhere" / "recipe.py")
    program = (
        "import configs; configs.STATE.append(1)\n"
        "from vit_jax import config\n"
        "config.load('elsewhere/recipe.py', [])\n"
        "import configs as again; assert again.STATE == [1] and again is configs"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(cli.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_home_and_colons_in_a_path(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(empty / "12:30"))
    write(empty / "12:30" / "a.py:b" / "recipe.py")
    recipe = "~/a.py:b/recipe.py"
    assert load(recipe)["seed"] == 3
    assert load(f"{recipe}:8")["seed"] == 8
    assert load(f"{empty}/12:30/a.py:b/recipe.py:9")["seed"] == 9


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("quikstart.py", 'did you mean "configs/quickstart.py"'),
        ("quickstart", 'did you mean "configs/quickstart.py"'),
        ("mine/quickstart.py", 'no file "mine/quickstart.py".*did you mean'),
        ("mine/recipy.py", 'did you mean "mine/recipe.py"'),
        ("configs/zzz.py", "recipes: configs/fashion_mnist.py, "),
        ("__init__.py", "recipes: "),
        ("../configs/quickstart.py", "there is no file"),
        (".", "there is no file"),
        ("", "there is no file"),
        (":", "there is no file"),
        ("a\0b.py", "there is no file"),
        (f"{'x' * 300}.py:B/16", "there is no file"),
    ],
)
def test_files_that_are_not_there(empty: Path, recipe: str, message: str) -> None:
    write(empty / "mine" / "recipe.py")
    with pytest.raises(UserError, match=message):
        load(recipe)


def test_the_recipes_of_the_repository_are_those_that_come_with_it() -> None:
    assert recipes.PACKAGED.resolve() == cli.ROOT / "configs"
