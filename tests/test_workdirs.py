"""Which directories a run may be in, and what is left of one that never began."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from tests import cli
from vit_jax import workdirs
from vit_jax.checkpoints import adapt
from vit_jax.errors import UserError


@pytest.mark.parametrize(
    "path, message",
    [
        ("", "--workdir= is empty (an unset variable of the shell?): give a path"),
        ("  ", "is empty"),
        ("s3://b/run", "--workdir=s3://b/run: paths are local or begin with gs://"),
        ("foo://b/run", "mount foo://, or copy what is there"),
        ("https://a.b/w", "download it, and give the file's path"),
        ("caf\udce9", r"'--workdir=caf\udce9': the path is not UTF-8; rename it"),
        ("a\0b", "the path is not UTF-8"),
    ],
)
def test_paths_that_cannot_be(path: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        workdirs.absolute(path, of="--workdir")


def test_weights_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named as they were given, with what to do."""
    monkeypatch.setattr(adapt, "is_run", lambda path: False)
    with pytest.raises(UserError, match=r"^gs://b/B_16\.npz .*: download it"):
        adapt.read_weights(epath.Path("gs://b/B_16.npz"))


def test_paths_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert (
        workdirs.absolute("~/a") == workdirs.absolute("a") == epath.Path(tmp_path) / "a"
    )
    assert os.fspath(workdirs.absolute("gs://b/ü")) == "gs://b/ü"


def test_a_workdir_in_use_names_who_uses_it(tmp_path: Path) -> None:
    """Another process holds it; when that is gone it is free again."""
    code = (
        "import sys; from etils import epath; from vit_jax import workdirs\n"
        "lock = workdirs.lock(epath.Path(sys.argv[1])); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "w")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(cli.ROOT)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
            workdirs.lock(epath.Path(tmp_path / "w"))
        holder.kill()
    workdirs.lock(epath.Path(tmp_path / "w")).close()


def fail_in(workdir: Path, *made: str) -> None:
    def work() -> None:
        with workdirs.held(epath.Path(workdir)):
            for name in made:
                path = workdir / name
                path.mkdir() if name == "checkpoints" else path.write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_what_fails_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    fail_in(tmp_path / "a" / "b" / "w", "checkpoints")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "w").mkdir()  # it was there before
    fail_in(tmp_path / "w")
    assert list(tmp_path.iterdir()) == [tmp_path / "w"]
    assert list((tmp_path / "w").iterdir()) == []
    fail_in(tmp_path / "w", "metrics.jsonl")
    names = {path.name for path in (tmp_path / "w").iterdir()}
    assert names == {".lock", "metrics.jsonl"}
    fail_in(tmp_path / "w")  # of a run that has begun nothing is taken
    assert {path.name for path in (tmp_path / "w").iterdir()} == names


def test_the_lock_is_of_the_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a lock whose file is removed meanwhile takes the new file."""
    workdir = epath.Path(tmp_path)
    flock = workdirs.fcntl.flock

    def removed_first(*args: int) -> None:
        monkeypatch.setattr(workdirs.fcntl, "flock", flock)
        (tmp_path / ".lock").unlink()
        flock(*args)

    monkeypatch.setattr(workdirs.fcntl, "flock", removed_first)
    with (
        workdirs.lock(workdir),
        pytest.raises(UserError, match=f"process {os.getpid()} on"),
    ):
        workdirs.lock(workdir)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", ".lock"])
def test_a_directory_for_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a directory, and a run has a file"):
        workdirs.lock(epath.Path(tmp_path))


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "broken_checkpoints"])
def test_a_file_for_a_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is no directory, and a run has one"):
        workdirs.lock(epath.Path(tmp_path))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe{", b"[" * 100_000, b"[]"])
def test_a_damaged_config_is_written_anew(damage: bytes, tmp_path: Path) -> None:
    workdir = epath.Path(tmp_path)
    (tmp_path / "config.json").write_bytes(damage)
    workdirs.write_config(workdir, {"seed": 1})
    assert workdirs.read_config(workdir) == {"seed": 1}
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_is_written_does_not_go_through_a_link(tmp_path: Path) -> None:
    """Somebody else may write into the workdir: our temporary name is no way out."""
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    temporary = tmp_path / f"config.json.{os.getpid()}.tmp"
    temporary.symlink_to(target)
    workdirs.write_config(epath.Path(tmp_path), {"seed": 1})
    assert target.read_text() == "theirs" and not temporary.exists()


def test_links_in_a_workdir_are_not_written_through(tmp_path: Path) -> None:
    """Whoever can write there could have any file of the user's emptied."""
    workdir, victim = epath.Path(tmp_path / "w"), tmp_path / "victim"
    workdir.mkdir()
    victim.write_text("precious")
    names = (".writable", "config.json", "config.json.tmp", "parameters.txt")
    for name in names:
        (tmp_path / "w" / name).symlink_to(victim)
    with workdirs.held(workdir):
        workdirs.write_atomically(workdir / "config.json", "{}")
        workdirs.write_atomically(workdir / "parameters.txt", "x")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "w/config.json").is_symlink()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.lock").symlink_to(victim)
    with pytest.raises(
        UserError, match=r"\.lock cannot be opened .*: it is a link, or"
    ):
        workdirs.lock(epath.Path(tmp_path / "w"))
    assert victim.read_text() == "precious"


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    left = ("config.json.123.tmp", "evals/test-20.json.4567.tmp")
    kept = ("mine.tmp", "evals/notes.tmp", "evals/test-20.json")
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    with workdirs.held(epath.Path(tmp_path)):
        assert not any((tmp_path / name).exists() for name in left)
        assert all((tmp_path / name).exists() for name in kept)
