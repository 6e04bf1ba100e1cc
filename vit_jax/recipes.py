"""Recipes as files: which one `--config` names, and what it can import.

A file that exists is taken. Else `NAME.py` and `configs/NAME.py` are the recipe of that
name that comes with vit_jax, so that a command works in any folder.
"""

import contextlib
import difflib
import functools
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path, PurePath

from vit_jax.errors import UserError

# In the repository a link to the folder `configs`; setup.py installs that here.
PACKAGED = Path(__file__).parent / "configs"
_CONFIGS = "configs"  # the package from which recipes import each other


def split(recipe: str) -> tuple[str, str]:
    """The file and the argument of `PATH.py[:ARG]`; "" if there is no argument.

    A path may have a ":" of its own: the longest file that exists is taken, else the
    path ends with the first ".py".

    >>> split("configs/imagenet1k.py:B/16"), split("runs/12:30/mine.py:a:b")
    (('configs/imagenet1k.py', 'B/16'), ('runs/12:30/mine.py', 'a:b'))
    """
    parts = recipe.split(":")
    names = [":".join(parts[: i + 1]) for i in range(len(parts))]
    existing = [name for name in names if _is_file(name)]
    python = [name for name in names if name.endswith(".py")]
    name = [*existing[-1:], *python, names[0]][0]
    return name, recipe[len(name) + 1 :]


def find(name: str) -> Path:
    """The file that a recipe's name means, without the argument (see `split`).

    The person at the terminal is told when it is one that comes with vit_jax.

    Raises:
      UserError: if there is no such file, with the nearest that there are.
    """
    if _is_file(name):
        return Path(os.path.expanduser(name))
    packaged = PACKAGED / PurePath(name).name
    if name in (packaged.name, f"{_CONFIGS}/{packaged.name}") and packaged in _all():
        _tell(name, packaged)
        return packaged
    raise UserError(
        f'--config={name}: there is no file "{name}" here, and no such recipe comes '
        f"with vit_jax; {_nearest(name)}"
    )


def load(path: Path) -> types.ModuleType:
    """Runs the file of a recipe; returns it as a module.

    Recipes import each other as `configs.NAME`: a file in the recipe's own folder if
    that is called `configs`, else in a folder `configs` beside that or beside the
    recipe or here, else one that comes with vit_jax.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    own, packaged = path.resolve().parent, PACKAGED.resolve()
    # Others may import a user's own modules too; ours must not be found as `data`.
    if own != packaged and str(own.parent) not in sys.path:
        sys.path.append(str(own.parent))
    folders = [folder / _CONFIGS for folder in (own.parent, own, Path.cwd())]
    with _configs_are([*folders, packaged]):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _configs_are(folders: list[Path]) -> Iterator[None]:
    """Lets `configs.NAME` be a file of the first folder that has it.

    Afterwards too, for imports within functions; but a package `configs` that the
    program itself has imported is put back.
    """
    theirs = _take_out_of_modules()
    folders = [folder for folder in folders if folder.is_dir()]
    places = [str(folder) for folder in dict.fromkeys(folders)]
    init = folders[0] / "__init__.py"
    if init.is_file():
        spec = importlib.util.spec_from_file_location(
            _CONFIGS, init, submodule_search_locations=places
        )
        assert spec is not None and spec.loader is not None
    else:
        spec = importlib.machinery.ModuleSpec(_CONFIGS, None, is_package=True)
        spec.submodule_search_locations = places
    package = importlib.util.module_from_spec(spec)
    package.__dict__[_OURS] = True
    sys.modules[_CONFIGS] = package
    try:
        if spec.loader is not None:
            spec.loader.exec_module(package)
        yield
    finally:
        if theirs and not hasattr(theirs[_CONFIGS], _OURS):
            _take_out_of_modules()
            sys.modules.update(theirs)


_OURS = "__of_vit_jax_recipes__"


def _take_out_of_modules() -> dict[str, types.ModuleType]:
    names = [n for n in sys.modules if f"{n}.".startswith(f"{_CONFIGS}.")]
    return {name: sys.modules.pop(name) for name in names}


def _is_file(name: str) -> bool:
    return os.path.isfile(os.path.expanduser(name))


def _all() -> list[Path]:
    return sorted(PACKAGED.glob("[a-z]*.py"))


@functools.cache  # once a process: a sweep reads its recipe for each trial
def _tell(name: str, packaged: Path) -> None:
    print(
        f'--config={name}: there is no file "{name}" here; taking {packaged}, which '
        "comes with vit_jax",
        file=sys.stderr,
        flush=True,
    )


def _nearest(name: str) -> str:
    """The end of a sentence: the file that was perhaps meant, else all recipes."""
    folder = Path(os.path.expanduser(name)).parent
    here = sorted(folder.glob("*.py")) if folder.is_dir() else []
    files = {p.stem: str(p) for p in here if not p.stem.startswith("_")}
    known = {path.stem: f"{_CONFIGS}/{path.name}" for path in _all()} | files
    near = difflib.get_close_matches(PurePath(name).stem, known, n=1)
    if near:
        return f'did you mean "{known[near[0]]}"?'
    return f"recipes: {', '.join(sorted(known.values()))}"
