"""Recipes with wrong values, or that are damaged, are used or refused."""

import copy
import itertools
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests import cli
from tests.fuzz import mutation
from vit_jax import config, initial
from vit_jax.checkpoints import Checkpoints
from vit_jax.config import values
from vit_jax.config.schema import has_own_names, join, schema
from vit_jax.errors import UserError
from vit_jax.run import Run

pytestmark = pytest.mark.slow

MINI = {"name": "fashion_mnist_mini", "image_size": 32}
FEW = {"split": "test[:1%]", "batch_size": 8}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "mlp_dim": 32,
        "num_heads": 2,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "stochastic_depth": 0.2,
    },
    "hybrid": {
        "resnet": (1, 1, 1),
        "patch_size": 1,
        "depth": 1,
        "width": 24,
        "mlp_dim": 16,
        "num_heads": 2,
    },
    "mixer": {
        "name": "mixer",
        "patch_size": 8,
        "width": 16,
        "depth": 1,
        "tokens_mlp_dim": 8,
        "mlp_dim": 8,
    },
    "resnet": {"name": "resnet", "stages": (1, 1), "width_factor": 1},
}
EVALS = {
    "test": {"type": "classification", "every": 10, **FEW},
    "few": {"type": "fewshot", "shots": (1,), "train_split": "train[:1%]", **FEW},
    "knn": {"type": "knn", "train_split": "train[:5%]", "data": MINI, **FEW},
}


def recipe(model: str) -> dict[str, Any]:
    """A complete config, in which every key can be found."""
    given = {
        "batch_size": 8,
        "total_steps": 60,
        "mixup": 0.3,
        "cutmix": 0.5,
        "ema": 0.9,
        "model": MODELS[model],
        "data": {
            **MINI,
            "train": {
                "crop": "pad",
                "padding": 2,
                "augment": "randaugment",
                "color_jitter": (0.2, 0.2, 0.2, 0.0),
                "erasing": 0.25,
            },
        },
        "optim": {"learning_rate": 3e-3, "warmup_steps": 5, "clip_norm": 1.0},
        "checkpoint": {"every": 7, "best": "test/accuracy"},
        "evals": EVALS,
    }
    return config.load(given).to_dict()


INTS = (*(-(2**62), -7, -1, 0, 1, 2, 3, 7, 31, 100, 65536), *(10**6, 2**31 - 1, 2**62))
FLOATS = (*(-1e300, -1.0, -0.0, 1e-300, 1e-9, 0.3, 0.5, 1.0, 1.5, 7.0), *(1e9, 1e300))
TEXTS = (
    *(
        "",
        " ",
        "x",
        ".*",
        "[",
        "(?",
        "head",
        "test",
        "train",
        "train[:1%]",
        "test[0:0]",
    ),
    *(
        "train+test",
        "test/accuracy",
        "~",
        ".",
        "/",
        "/dev/null",
        "~x",
        "s3://x/y",
    ),
    *("https://x/y", "a\nb", "ünï", "L/16", "B/0", "-1", "none", "fashion_mnist_mini"),
    *(
        "folder",
        "npz",
        "idx",
        "mixture",
        "array_record",
        "cifar10",
        "vtab/dtd",
        "a/b/c",
    ),
)
WILD: tuple[Any, ...] = (set(), b"x", 1j, range(3), object, "\0", "\ud800", (1, (2,)))


def drawn(rng: np.random.Generator, type_: Any) -> Any:
    """A value of a key's type, near or far from what makes sense."""
    members, parts = values.members(type_), typing.get_args(type_)
    if len(members) > 1:
        return drawn(rng, members[rng.integers(len(members))])
    if names := values.literal_names(type_):
        return names[rng.integers(len(names))]
    if typing.get_origin(type_) is tuple:
        if parts[-1] is Ellipsis:
            parts = parts[:1] * int(rng.integers(0, 4))
        return tuple(drawn(rng, part) for part in parts)
    if type_ is bool:
        return bool(rng.integers(2))
    known = {int: INTS, float: FLOATS, str: TEXTS, type(None): (None,)}
    choices = known[type_] if type_ in known else (None,)
    return choices[rng.integers(len(choices))]


def sections(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """All of them, as often as they have keys: each key is as likely."""
    for key, value in tree.items():
        yield where, tree
        if isinstance(value, dict):
            yield from sections(value, join(where, key))


def changed(tree: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """One or two values at any depth are others, missing or added."""
    tree, wild = copy.deepcopy(tree), (*mutation.VALUES, *WILD)
    for _ in range(rng.integers(1, 3)):
        places = list(sections(tree))
        where, place = places[rng.integers(len(places))]
        names = [*place, "x"] if rng.random() < 0.1 else list(place)
        key, chance = names[rng.integers(len(names))], rng.random()
        if chance < 0.05 and key in place:
            del place[key]
        elif chance < 0.15:
            place[key] = copy.deepcopy(wild[rng.integers(len(wild))])
        else:
            place[key] = drawn(rng, type_of(place, where, key))
    return tree


def type_of(place: dict[str, Any], where: str, key: str) -> Any:
    if has_own_names(where):
        return type(None)
    try:
        keys = schema(where, place)
    except UserError:  # of a section that is changed already
        return str
    return keys[key].type if key in keys else str


def as_file(tree: dict[str, Any]) -> str:
    text = repr(tree).replace("<class 'object'>", "object")
    return (
        f"nan, inf = float('nan'), float('inf')\ndef get_config():\n  return {text}\n"
    )


@pytest.fixture
def set_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run sets of JAX is set back."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: jax.config.values[name] for name in names}

    yield
    for name, value in before.items():
        jax.config.update(name, value)


def begin(path: Path, workdir: Path) -> None:
    """What training does before it compiles anything."""
    complete = config.load(str(path)).to_dict()
    run = Run(**complete)
    run.check_data()
    assert run.notes() is not None and run.warnings() is not None
    place = epath.Path(workdir / "checkpoints")
    with Checkpoints(place, complete, run.stream, **run.checkpoint) as saved:
        saved.check_best(run.result_names())
        initial.first_state(run, saved)


def seconds(inputs: Iterator[bytes]) -> Iterator[bytes]:
    """Inputs until the time is up; the first 40 always.

    `make fuzz` has its own time.
    """
    started = time.monotonic()
    for i, data in enumerate(inputs):
        late = time.monotonic() - started > 25
        if i >= 40 and late and not mutation.SECONDS:
            return
        yield data


@pytest.mark.parametrize(
    "model",
    [m if m == "vit" else pytest.param(m, marks=pytest.mark.campaign) for m in MODELS],
)
@pytest.mark.usefixtures("set_back")
def test_values(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all that training does before it compiles anything."""
    monkeypatch.chdir(tmp_path)
    # The initialisation is compiled.
    monkeypatch.setattr(initial, "init_state", lambda _, abstract: abstract)
    path, whole = tmp_path / "mine.py", recipe(model)

    def use(data: bytes) -> None:
        path.write_bytes(data)
        begin(path, tmp_path / "workdir")

    trees = (changed(whole, np.random.default_rng(i)) for i in mutation.rounds(500))
    texts = (as_file(tree).encode() for tree in itertools.chain([whole], trees))
    used, refused = mutation.check(use, seconds(texts), tmp_path / "input")
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike


@pytest.mark.parametrize("name", ["quickstart.py", "finetune.py", "vtab.py"])
@pytest.mark.usefixtures("set_back")
def test_texts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are no Python, or another program."""
    monkeypatch.chdir(tmp_path)
    whole = (cli.ROOT / "configs" / name).read_bytes()
    path = tmp_path / "mine.py"

    def use(data: bytes) -> None:
        path.write_bytes(data)
        config.load(str(path))

    inputs = itertools.chain([whole], mutation.mutations([whole], 1000))
    used, refused = mutation.check(use, inputs, tmp_path / "input")
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike
