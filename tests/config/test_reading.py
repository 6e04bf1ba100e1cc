"""What a recipe says, and what happens when it is none, or fails."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.run import Run

QUICKSTART = str(cli.ROOT / "configs" / "quickstart.py")


def recipe(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["quickstart.py", "finetune.py", "imagenet_evals.py"])
def test_a_stored_config_is_a_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON has it, the file itself or the workdir; completing changes nothing."""
    monkeypatch.chdir(cli.ROOT)
    loaded = config.load(f"configs/{name}").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(loaded))
    for stored in (tmp_path, tmp_path / "config.json"):
        assert config.load(str(stored)).to_dict() == loaded
    changed = config.load(str(tmp_path), [("seed", "3")]).to_dict()
    assert changed == {**loaded, "seed": 3}


def test_a_recipe_may_return_a_dict(tmp_path: Path) -> None:
    text = (
        f"import sys; sys.path.append({str(cli.ROOT)!r})\n"
        "from configs import quickstart\n"
        "def get_config():\n  return dict(quickstart.get_config())\n"
    )
    assert config.load(recipe(tmp_path, text)) == config.load(QUICKSTART)


def test_a_path_with_a_colon_or_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (cli.ROOT / "configs" / "imagenet1k.py").read_text()
    path = recipe(tmp_path, text, "a:b/x.py")
    loaded = config.load(f"{path}:L/16").to_dict()
    assert loaded["model"]["variant"] == "L/16"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load("~/a:b/x.py:L/16").to_dict() == loaded


FAILING = {
    "syntax": ("def get_config(:\n", "mine.py, line 1: SyntaxError: "),
    "name": ("x = 1\ny = z\n", "mine.py, line 2: NameError: name 'z'"),
    "in the call": (
        "def get_config():\n  return 1 / 0\n",
        "mine.py, line 2: ZeroDivisionError: division by zero",
    ),
    "in what it calls": (
        "import json\ndef get_config():\n  return json.loads(3)\n",
        "mine.py, line 3: TypeError",
    ),
    "missing module": ("import nothing_like_it\n", "line 1: ModuleNotFoundError"),
    "exit": ("import sys\nsys.exit('no')\n", "mine.py, line 2: SystemExit: no"),
    "recursion": ("def f(): f()\nf()\n", "mine.py, line 1: RecursionError"),
    "assertion": ("assert False\n", "mine.py, line 1: AssertionError"),
    "own message": (
        "def get_config():\n  raise ValueError('try B/16')\n",
        "mine.py: try B/16",
    ),
    "none": ("def get_config(): pass\n", "returns NoneType; expected a ConfigDict"),
    "list": ("def get_config(): return [1]\n", "returns list; expected a ConfigDict"),
    "keys": ("def get_config(): return {1: 2}\n", "config has the key 1"),
    "dots": ("def get_config(): return {'a.b': 2}\n", "config.a.b is not a key"),
    "argument": ("def get_config(arg): pass\n", "needs an argument, as in .*:ARG"),
    "no function": ("get_config = 3\n", "defines no get_config"),
    "nothing": ("", "defines no get_config"),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_a_recipe_does_wrong_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = FAILING[case]
    with pytest.raises(UserError, match=message) as caught:
        config.load(recipe(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("c.yaml", "a recipe is a Python file"),
        ("weights.npz", "a recipe is a Python file"),
        ("folder", "there is no file config.json in it"),
        ("config.json", "cannot be read"),
        ("list.json", "expected one JSON object"),
        ("binary.py", "SyntaxError"),
        ("x" * 300 + ".py", "there is no file"),
        ("config.json:B/16", 'takes no ":B/16"'),
    ],
)
def test_what_is_no_recipe(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.json").write_text('{"seed": 1')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "binary.py").write_bytes(os.urandom(40) + b"\xff\0")
    for other in ("c.yaml", "weights.npz"):
        (tmp_path / other).write_text("seed: 1")
    with pytest.raises(UserError, match=message) as caught:
        config.load(str(tmp_path / name))
    assert len(str(caught.value)) < 1500


def test_values_that_no_key_takes(tmp_path: Path) -> None:
    def load(key: str, value: Any) -> None:
        config.load(QUICKSTART, [(key, value)])

    for key, text, message in (
        ("total_epochs", "1e400", "should be finite"),
        ("mixup", "-1e999", "should be finite"),
        ("optim.learning_rate", "inf", "should be a float"),
        ("model.head_bias_init", "-1e300", "float32, which ends at 3.4e"),
        ("mixup", "1e39", "float32, which ends at 3.4e"),
        ("optim.learning_rate", "nan", "should be a float"),
        ("data.std", "(1e400,1,1)", "should be finite"),
        ("total_steps", "1e400", "should be an int"),
        ("batch_size", "9" * 40, "fit into 64 bits"),
        ("batch_size", "9" * 5000, "should be an int"),
        ("optim.learning_rate", "9" * 4000, "should be finite"),
        ("batch_size", "{[]:1}", "should be an int"),
        ("batch_size", "-" * 3000 + "1", "should be an int"),
        ("batch_size", "(" * 3000, "should be an int"),
        ("data.mean", "[[" * 500, "a tuple"),
        ("batch_size", "1 if x else 2", "should be an int"),
        ("batch_size", "0x", "should be an int"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(key, text)
        assert len(str(caught.value)) < 300, caught.value
    with pytest.raises(UserError, match="should be finite"):
        load("optim.learning_rate", float("nan"))


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("batch_size", "1e12", "batch_size is 1,000,000,000,000: it should be from 1"),
        ("batch_size", "-1", "it should be from 1 to"),
        ("batch_size", "16000000", "lower config.batch_size"),
        ("total_steps", "3e9", "means 3,000,000,000 steps"),
        ("total_steps", "-3", "means -3 steps"),
        ("model.width", "1e9", "width is 1000000000: it should be at most"),
        ("model.width", "1e6", "of memory: choose a smaller model"),
        ("model.depth", "1e9", "should be at most 4,096"),
        ("model.registers", "1e6", "should be at most 4,096"),
        ("model.layer_norm_epsilon", "1e30", "must be above 0, and at most 1"),
        ("data.max_pixels", "1e12", "max_pixels=1000000000000; expected 1 to"),
        ("data.image_size", "1e8", "expected pixels, or"),
        ("data.train.padding", "100000", "expected pixels, 0 to 16,384"),
        ("data.train.repeats", "1e18", "expected 1 to"),
        ("data.eval.resize", "1e9", "expected 28 to 16,384"),
        ("data.num_threads", "1e6", "expected 1 to 1,024"),
        ("data.num_workers", "1e6", "expected 0 to 1,024"),
    ],
)
def test_sizes_that_no_machine_has(key: str, text: str, message: str) -> None:
    """Refused where they enter, and not by the memory's end."""
    pairs = [("total_epochs", "none"), ("total_steps", "300"), (key, text)]
    with pytest.raises(UserError, match=message):
        Run(**config.load(QUICKSTART, pairs).to_dict())
