"""A save whose clock jumps, or that takes long, is no error."""

import time
import types
from pathlib import Path

import pytest
from orbax.checkpoint._src.futures import future

from tests import cli
from tests.checkpoints.test_damage import BEFORE, NEWEST, Saved


class Leaping(types.SimpleNamespace):
    """A clock that jumps by an hour whenever it is read."""

    read = 0

    def time(self) -> float:
        self.read += 1
        return time.time() + 3600 * self.read


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Leaping(sleep=time.sleep)
    monkeypatch.setattr(future, "time", clock)
    saved = Saved(tmp_path)
    assert clock.read > 1
    assert cli.saved_steps(saved.directory) == [BEFORE, NEWEST]
