"""A disk that cannot be written is told once, in words."""

import errno
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath

from vit_jax.checkpoints import disk
from vit_jax.errors import UserError

STATE = {"weights": np.zeros(1_000_000, np.float32)}


def free(monkeypatch: pytest.MonkeyPatch, *, files: int = 10**6, size: int = 10**9):
    """Makes the system say that so much is free."""
    found: Any = SimpleNamespace(f_bavail=size, f_frsize=1, f_files=10**6)
    found.f_favail = files
    monkeypatch.setattr(os, "statvfs", lambda path: found)


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = epath.Path(tmp_path)
    free(monkeypatch)
    disk.check_space(directory, STATE)
    free(monkeypatch, size=3_900_000)
    with pytest.raises(UserError, match=r"needs up to 4\.0 MB, 3\.9 MB are free"):
        disk.check_space(directory, STATE)
    free(monkeypatch, files=10)
    with pytest.raises(UserError, match=r"and 10 more can be made \(df -i\)"):
        disk.check_space(directory, STATE)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: No such file or directory"):
        disk.check_space(epath.Path(tmp_path / "gone"), STATE)


def test_a_directory_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a disk that has become read-only; Orbax would wait for five minutes."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(type(epath.Path(tmp_path)), "touch", refused)
    with pytest.raises(UserError, match=f"{tmp_path}: Read-only file system"):
        disk.check_space(epath.Path(tmp_path), STATE)


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left to write"),
        (ValueError("RESOURCE_EXHAUSTED: Disk quota exceeded"), "no space left"),
        (ValueError("Failed to write [os_error_code='27']"), "File too large"),
        (FileNotFoundError(errno.ENOENT, "gone"), "No such file or directory"),
    ],
)
def test_what_a_save_fails_with(error: Exception, said: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"a checkpoint in {tmp_path}.*") as raised,
        disk.writing(epath.Path(tmp_path)),
    ):
        raise error
    assert said in str(raised.value) and raised.value.__cause__ is error


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    for error in (ValueError("a defect"), UserError("said already")):
        with (
            pytest.raises(type(error)) as raised,
            disk.writing(epath.Path(tmp_path)),
        ):
            raise error
        assert raised.value is error


def test_threads_and_tasks_do_not_tell_it_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    disk.tell_once()
    for name in ("absl", "asyncio"):
        for text in (
            "[os_error_code='28']",
            "cannot schedule new futures after shutdown",
        ):
            try:
                raise ValueError(text)
            except ValueError:
                logging.getLogger(name).exception("a task has failed")
    assert not caplog.records
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))  # type: ignore[arg-type]
    assert [str(each.exc_value) for each in unraisable] == ["another"]
