"""What a recipe says: a file with a `get_config`, or the config.json of a run."""

import inspect
import json
import os
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vit_jax import recipes, workdirs
from vit_jax.config.schema import Plain
from vit_jax.errors import UserError

STORED = workdirs.CONFIG


def read(recipe: str) -> Plain:
    """What a recipe says, as plain dicts.

    Args:
      recipe: `PATH.py` or `PATH.py:ARG`, whose `get_config(arg)` is called; or the
        workdir of a run, or the config.json in it.

    Raises:
      UserError: for what is not there, is no recipe, or fails.
    """
    path, arg = locate(recipe)
    if path.suffix == ".json":
        return read_stored(path)
    return call(recipe, load_module(recipe, Path(path)), arg)


def locate(recipe: str) -> tuple[epath.Path, str]:
    """The file that `PATH[:ARG]` names, and the argument ("" without one).

    Raises:
      UserError: if there is no such file, or it is of another kind.
    """
    stored = _stored(recipe)
    if stored is not None:
        return stored, ""
    name, arg = recipes.split(recipe)
    path = recipes.find(name)
    if path.suffix == ".json" and arg:
        raise UserError(f'--config={recipe}: a stored config takes no ":{arg}"')
    if path.suffix not in (".py", ".json"):
        raise UserError(
            f"--config={recipe}: a recipe is a Python file with get_config(), PATH.py "
            f"or PATH.py:ARG; the {STORED} of a run and its workdir are taken too"
        )
    return epath.Path(path), arg


def _stored(recipe: str) -> epath.Path | None:
    """The config of a run, if it is its workdir that is named."""
    if "://" in recipe:
        path = workdirs.absolute(recipe, of="--config")
        return path if path.suffix == ".json" else path / STORED
    directory = os.path.expanduser(recipe)
    if not os.path.isdir(directory):
        return None
    path = epath.Path(directory) / STORED
    if not path.is_file() and not (path.parent / "checkpoints").is_dir():
        raise UserError(
            f"--config={recipe}: a directory, and there is no file {STORED} in it; "
            "expected a recipe, PATH.py or PATH.py:ARG, or the workdir of a run"
        )
    return path


def read_stored(path: epath.Path) -> Plain:
    """The config.json that a run has written; if it is not whole, that of a checkpoint.

    Raises:
      UserError: if none is whole.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("expected one JSON object")
    except (OSError, ValueError, RecursionError) as error:
        from vit_jax import checkpoints  # slow to import

        if (found := checkpoints.newest_config(path.parent)) is not None:
            logging.warning(
                "%s cannot be read: the config of %s is used", path, found[1]
            )
            return found[0]
        raise UserError(
            f"--config={path} cannot be read ({type(error).__name__}: {error}): name "
            "the recipe that the run was started with"
        ) from error
    return stored


def module(recipe: str) -> types.ModuleType:
    """The module in the file that `PATH.py[:ARG]` names.

    Raises:
      UserError: if there is none, or it fails.
    """
    path, _ = locate(recipe)
    if path.suffix == ".json":
        return types.ModuleType("stored")  # it defines no sweep() and no group()
    return load_module(recipe, Path(path))


def load_module(recipe: str, path: Path) -> types.ModuleType:
    """Runs the file of a recipe."""
    with _Explained(recipe, path):
        return recipes.load(path)


def call(recipe: str, loaded: types.ModuleType, arg: str) -> Plain:
    """What `get_config(arg)` of a module returns."""
    if not callable(function := getattr(loaded, "get_config", None)):
        raise UserError(f"--config={recipe}: the file defines no get_config(arg)")
    parameters = inspect.signature(function).parameters.values()
    if arg and not parameters:
        raise UserError(f'--config={recipe}: this recipe takes no argument ":{arg}"')
    needed = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_KEYWORD]
    if len([p for p in needed if p.kind is not p.VAR_POSITIONAL]) > bool(arg):
        raise UserError(
            f"--config={recipe}: this recipe needs an argument, as in "
            f"--config={recipe.removesuffix(':')}:{needed[0].name.upper()}"
        )
    with _Explained(recipe, Path(str(loaded.__file__))):
        returned = function(arg) if arg else function()
    if not isinstance(returned, ConfigDict | Mapping):
        raise UserError(
            f"--config={recipe}: get_config() returns {type(returned).__name__}; "
            "expected a ConfigDict or a dict"
        )
    return plain(returned)


def plain(config: Any, path: str = "config") -> Any:
    """Dicts of a config's values, without ConfigDicts and references.

    Raises:
      UserError: for a key that is no string.
    """
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return config
    for name in config:
        if not isinstance(name, str):
            raise UserError(f"{path} has the key {name!r}: keys are strings")
    return {name: plain(value, f"{path}.{name}") for name, value in config.items()}


class _Explained:
    """What a recipe raises becomes one line, which names the recipe's line."""

    def __init__(self, recipe: str, path: Path) -> None:
        self._recipe, self._root = recipe, path.resolve().parent

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _: Any, error: BaseException | None, trace: Any
    ) -> Literal[False]:
        # A recipe is somebody else's program: whatever it raises is told to them.
        if error is None or isinstance(error, KeyboardInterrupt | UserError):
            return False
        if type(error) is ValueError:  # how a recipe refuses its argument
            raise UserError(f"--config={self._recipe}: {error}") from error
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, SyntaxError):
            said = f"{type(error).__name__}: {error.msg}"
            where = f"{error.filename}, line {error.lineno}"
        else:
            own = [
                frame
                for frame in traceback.extract_tb(trace)
                if self._root in Path(frame.filename).resolve().parents
            ]
            where = f"{own[-1].filename}, line {own[-1].lineno}" if own else "the file"
        first = said.splitlines()[0]
        raise UserError(f"--config={self._recipe}: {where}: {first}") from error
