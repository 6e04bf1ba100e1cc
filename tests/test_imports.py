"""Dependencies point one way; docs/design says why. Only direct imports are read.

main -> api -> {config, training} -> evaluators
     -> {state, steps, data, checkpoints, metrics}
     -> objectives -> {models, optim, sharding, ...} -> errors
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module or package of vit_jax may import those of lower layers, and no
# other of its own layer. `__init__` is the public face and stands on top of all.
LAYERS: tuple[set[str], ...] = (
    {"durable", "errors", "lettering", "processes", "streams"},
    {"authentication", "limits"},
    {
        "class_names",
        "cluster",
        "compiler",
        "console",
        "devices",
        "flags",
        "heartbeats",
        "host_memory",
        "jsonlines",
        "layouts",
        "models",
        "optim",
        "preemption",
        "progress",
        "recipes",
        "relay",
        "resample",
        "schedules",
        "sharding",
        "tensorboard",
        "timing",
    },
    {"distributed", "objectives", "votes"},
    {
        "bad_examples",
        "checkpoints",
        "curves",
        "data",
        "lookahead",
        "metrics",
        "preprocessing",
        "state",
        "steps",
        "waiting",
        "workdirs",
    },
    {"provenance"},
    {"checks", "loading", "observer", "program"},
    {"evaluators"},
    {"run"},
    {"initial", "summary"},
    {"config", "evaluation", "export", "planning", "training", "verify", "visualize"},
    {"__main__", "api", "convert", "data.check", "fsck", "plan", "predict"},
    {"main"},
    {"__init__"},
)
LAYER_OF = {name: i for i, layer in enumerate(LAYERS) for name in layer}

# (who, whom): neighbours of one layer of which one is built on the other.
NEIGHBOURS = {
    ("bad_examples", "data"),
    ("devices", "host_memory"),
    ("devices", "progress"),
    ("optim", "schedules"),
    ("steps", "state"),
    ("checkpoints", "state"),
    ("checkpoints", "workdirs"),
    ("sharding", "layouts"),
    ("streams", "errors"),
    ("convert", "predict"),
    ("curves", "metrics"),
    ("preprocessing", "data"),
    ("checkpoints", "preprocessing"),
    ("timing", "jsonlines"),
}

# Packages that have one home, so that replacing them stays a local change.
HOME = {
    "flax.linen": "models",
    "orbax": "checkpoints",
    "grain": "data",
    "tensorflow": "data",
    "tensorflow_datasets": "data",
}

FOR_CONFIGS = {"configs", "ml_collections"}
FOR_CONFIGS_INIT = {"sys"}

# A launcher starts others, often from where no accelerator is: no training logic.
# Keys are checked by vit_jax.config, which imports jax only when it is called.
FOR_LAUNCHERS = {
    "etils.epath",
    "matplotlib.figure",
    "optuna",
    "vit_jax.authentication",
    "vit_jax.config",
    "vit_jax.errors",
    "vit_jax.flags",
    "vit_jax.launch",
    "vit_jax.limits",
    "vit_jax.recipes",
    "vit_jax.streams",
    "vit_jax.workdirs",
}

HOW_TO_ADD = (
    "is in no layer: put it into LAYERS of tests/test_imports.py, as low as what it "
    "imports allows"
)


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names that `source`, a module of `package`, imports at any depth.

    >>> sorted(imported("import a.b; from c import d; from .e import f", "p.q"))
    ['a.b', 'c.d', 'p.q.e.f']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def unit(dotted: str) -> str | None:
    """Which module or package of vit_jax a dotted name belongs to, None if to none.

    >>> unit("vit_jax.data.sampler"), unit("vit_jax.list_models"), unit("jax.numpy")
    ('data', '__init__', None)
    """
    root, _, rest = dotted.partition(".")
    if root != "vit_jax" or rest == "__version__":
        return None
    if f"{rest}.".startswith("data.check."):  # a command, which reads whole configs
        return "data.check"
    name = rest.partition(".")[0]
    is_module = name in LAYER_OF or (ROOT / "vit_jax" / name).is_dir()
    is_module = is_module or (ROOT / "vit_jax" / f"{name}.py").is_file()
    return name if name and is_module else "__init__"


def is_within(name: str, package: str) -> bool:
    """Whether importing `name` gives access to `package`."""
    return f"{name}.".startswith(f"{package}.") or package.startswith(f"{name}.")


def problems_of_module(me: str, source: str, package: str = "vit_jax") -> list[str]:
    """What is wrong with the imports of one file of the module or package `me`."""
    if me not in LAYER_OF:
        return [f"vit_jax/{me} {HOW_TO_ADD}"]
    found = []
    for name in imported(source, package):
        other = unit(name)
        for home in (
            p for p in HOME if is_within(name, p) and HOME[p] != me.split(".")[0]
        ):
            found.append(f"{me} imports {name}; only {HOME[home]} may import {home}")
        if other is None or other == me:
            continue
        if other not in LAYER_OF:
            found.append(f"{me} imports vit_jax.{other}, which {HOW_TO_ADD}")
        elif LAYER_OF[other] >= LAYER_OF[me] and (me, other) not in NEIGHBOURS:
            found.append(f"{me} imports {name}, which is not below it")
    return found


def problems_of_config(source: str) -> list[str]:
    """What a recipe imports besides ml_collections and other recipes."""
    names = imported(source, "configs")
    return [
        f"a config imports {name}; only {' and '.join(sorted(FOR_CONFIGS))} are allowed"
        for name in names
        if name.partition(".")[0] not in FOR_CONFIGS
    ]


def problems_of_launcher(source: str) -> list[str]:
    """What a launcher imports besides the standard library and FOR_LAUNCHERS."""
    return [
        f"a launcher imports {name}; put that into vit_jax, or run it in a process"
        for name in imported(source, "vit_jax.launch")
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{p}.") for p in FOR_LAUNCHERS)
    ]


def python_files(folder: str) -> list[Path]:
    return sorted(p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files("vit_jax"), ids=str)
def test_module_imports_only_what_is_below_it(path: Path):
    me = unit(".".join(path.with_suffix("").parts)) or ""
    package = ".".join(path.parts[:-1])
    source = (ROOT / path).read_text(encoding="utf-8")
    assert problems_of_module(me, source, package) == []


@pytest.mark.parametrize("path", python_files("configs"), ids=str)
def test_config_imports_only_ml_collections_and_configs(path: Path):
    source = (ROOT / path).read_text(encoding="utf-8")
    if path.name == "__init__.py":  # no recipe; see there
        assert set(imported(source, "configs")) == FOR_CONFIGS_INIT
    else:
        assert problems_of_config(source) == []


@pytest.mark.parametrize("path", python_files("launch"), ids=str)
def test_launcher_imports_no_training_code(path: Path):
    assert problems_of_launcher((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("me", "source", "expected"),
    [
        ("schedules", "from vit_jax import training", "training, which is not below"),
        ("schedules", "import vit_jax.training", "training, which is not below"),
        (
            "schedules",
            "def f():\n  from vit_jax.optim import make",
            "optim.make, which",
        ),
        ("schedules", "from . import optim", "vit_jax.optim, which is not below"),
        ("steps", "from vit_jax.metrics import Writer", "metrics.Writer, which is not"),
        ("state", "from vit_jax import steps", "steps, which is not below"),
        (
            "training",
            "from vit_jax import list_models",
            "list_models, which is not below",
        ),
        ("steps", "from flax import linen as nn", "only models may import flax.linen"),
        ("steps", "import flax", "only models may import flax.linen"),
        ("steps", "import flax.linen as nn", "only models may import flax.linen"),
        (
            "training",
            "import orbax.checkpoint as ocp",
            "only checkpoints may import orbax",
        ),
        ("training", "import tensorflow as tf", "only data may import tensorflow"),
        ("evaluators", "import grain.python", "only data may import grain"),
        ("newcomer", "", "vit_jax/newcomer is in no layer"),
    ],
)
def test_a_bad_import_is_reported(me: str, source: str, expected: str):
    (problem,) = problems_of_module(me, source)
    assert expected in problem


@pytest.mark.parametrize(
    ("me", "source"),
    [
        ("training", "from vit_jax import data, errors, __version__\nimport jax"),
        ("data", "from vit_jax.data import sampler\nimport grain, tensorflow_datasets"),
        ("models", "import flax.linen as nn"),
        ("state", "import flax.struct"),
        ("optim", "from vit_jax import schedules"),
    ],
)
def test_a_good_import_is_not_reported(me: str, source: str):
    assert problems_of_module(me, source) == []


def test_a_config_that_imports_jax_is_reported():
    assert problems_of_config("import jax") != []
    assert problems_of_config("from vit_jax import models") != []
    good = "from ml_collections import config_dict\nfrom configs import quickstart"
    assert problems_of_config(good) == []


def test_a_launcher_that_imports_training_code_is_reported():
    assert problems_of_launcher("import jax") != []
    assert problems_of_launcher("from vit_jax import training") != []
    assert problems_of_launcher("import vit_jax") != []
    good = "import os.path\nfrom vit_jax import config\nfrom vit_jax.launch import job"
    assert problems_of_launcher(good) == []


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh process has loaded after running `code`."""
    code += "\nimport sys; print(*sys.modules)"
    run = [sys.executable, "-c", code]
    return set(subprocess.check_output(run, cwd=ROOT, text=True).split())


def test_importing_the_package_does_not_import_jax():
    assert "jax" not in loaded_by("import vit_jax")


def test_importing_a_launcher_imports_neither_jax_nor_extras():
    modules = loaded_by("import vit_jax.launch.sweep")
    assert "vit_jax.launch.slurm" in modules
    assert modules.isdisjoint({"jax", "matplotlib", "optuna"})


def test_checking_a_config_imports_neither_tensorflow_nor_clu_writers():
    """They take seconds, which a misspelt key must not cost; nor scipy.stats, half."""
    check = 'config.load("configs/quickstart.py", [])'
    modules = loaded_by(f"from vit_jax import config; {check}")
    assert "vit_jax.config" in modules
    assert modules.isdisjoint({"tensorflow", "clu.metric_writers", "scipy.stats"})
