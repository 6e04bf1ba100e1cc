"""What several files of tests need and takes long to make is made once."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import cli


def copied(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """A copy of the directory `name`, which `make` has filled for all workers.

    The first who asks makes it, and the others wait.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made, done = root / f"once-{name}", root / f"once-{name}.done"
    with open(root / f"once-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(made, ignore_errors=True)  # the one before has failed
            make(made)
            done.touch()
    return Path(shutil.copytree(made, factory.mktemp(name) / "workdir"))


def everything(factory: pytest.TempPathFactory) -> Path:
    """The finished run of tests/recipes/everything.py."""
    return copied(
        factory,
        "everything",
        lambda path: cli.run(f"--config={cli.EVERYTHING}", f"--workdir={path}"),
    )
