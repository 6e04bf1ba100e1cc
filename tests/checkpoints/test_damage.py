"""Whatever is damaged of a checkpoint is noticed, or the same bits are restored.

The checkpoints are of tests/recipes/everything.py. What is compared with is read by
Orbax from the undamaged ones, without our code.
"""

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

import vit_jax
from tests import cli
from vit_jax import checkpoints, config, state
from vit_jax.checkpoints import Checkpoints, Damaged, manifest, reading
from vit_jax.errors import UserError
from vit_jax.run import Run

BEFORE, NEWEST = 28, 30
Arrays = dict[str, np.ndarray]


class Saved:
    """A workdir with two checkpoints, and what they hold."""

    def __init__(self, directory: Path) -> None:
        self.config = config.load(cli.EVERYTHING, []).to_dict()
        self.run = Run(**self.config)
        self.directory = directory / "workdir"
        with self.open(self.directory) as saved:
            for step in (BEFORE, NEWEST):
                saved.position.step = saved.position.best_step = step
                saved.position.best_value = step / 100
                saved.save(drawn(self.run.abstract_state, step))
        self.arrays = {
            step: cli.saved_arrays(self.directory, step) for step in (BEFORE, NEWEST)
        }
        newest = self.directory / "checkpoints" / str(NEWEST)
        paths = [path for path in sorted(newest.rglob("*")) if path.is_file()]
        self.files = {
            str(path.relative_to(newest)): path.stat().st_size for path in paths
        }

    def open(self, workdir: Path) -> Checkpoints:
        return Checkpoints(
            epath.Path(workdir / "checkpoints"),
            self.config,
            self.run.stream,
            self.run.dataset.label_names,
            **self.run.checkpoint,
        )

    def restore(self, workdir: Path) -> tuple[int, Arrays]:
        """What a run would go on from: the step, and the arrays of its state."""
        with self.open(workdir) as saved:
            restored = saved.restore(self.run.abstract_state)
            assert restored is not None
            return saved.position.step, arrays_of(restored)


def drawn(abstract: state.TrainState, step: int) -> state.TrainState:
    """A state in which no two numbers are the same, as after training."""
    random = np.random.default_rng(step)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jax.device_put(np.full(x.shape, step, x.dtype), x.sharding)
        numbers = random.standard_normal(x.shape, np.float32)
        return jax.device_put(numbers.astype(x.dtype), x.sharding)

    return jax.tree.map(draw, abstract)


def arrays_of(whole: state.TrainState) -> Arrays:
    """The arrays of a state, named as `cli.saved_arrays` names them."""
    rest = whole.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    items = {"params": whole.params, "ema_params": whole.ema_params, "rest": rest}
    return {
        item + jax.tree_util.keystr(path): np.asarray(leaf)
        for item, tree in items.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_content(a: Arrays, b: Arrays) -> None:
    """The same arrays; Orbax and we name the levels of a state in other ways."""
    assert sorted(x.tobytes() for x in a.values()) == sorted(
        x.tobytes() for x in b.values()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def workdir(saved: Saved, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(saved.directory, tmp_path / "workdir")
    return tmp_path / "workdir"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in warnings."""
    lines: list[str] = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: lines.append(text % args)
    )
    return lines


@contextlib.contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with another content, or without the file, and back."""
    before = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def check(saved: Saved, workdir: Path) -> bool:
    """Whether what was done to the newest checkpoint is noticed.

    If a run would go on from it, or `load` take it, the bits have to be the same.
    """
    newest = epath.Path(workdir / "checkpoints" / str(NEWEST))
    noticed = True
    with contextlib.suppress(Damaged):
        reading.examine(newest)
        noticed = False
    if not noticed:
        step, arrays = saved.restore(workdir)
        assert step == NEWEST
        assert_same_content(arrays, saved.arrays[NEWEST])
    chosen = checkpoints.choose(epath.Path(workdir))
    step = int(chosen.name)
    assert step in ((BEFORE, NEWEST) if noticed else (NEWEST,))
    if step == NEWEST:  # what `load` reads of it, and `init_from`
        read = reading.read_arrays(chosen)
        theirs = saved.arrays[step]
        theirs = {n: x for n, x in theirs.items() if n.startswith("ema_params")}
        assert_same_content(read, theirs)
    return noticed


def flips(saved: Saved, workdir: Path, count: int) -> int:
    """How many of so many flips of one bit, anywhere, are noticed."""
    random = np.random.default_rng(count)
    ends, noticed = np.cumsum(list(saved.files.values())), 0
    for bit in random.integers(8 * ends[-1], size=count):
        file = int(np.searchsorted(ends, bit // 8, side="right"))
        path = workdir / "checkpoints" / str(NEWEST) / list(saved.files)[file]
        data = bytearray(path.read_bytes())
        data[int(bit // 8 - ends[file])] ^= 1 << int(bit % 8)  # counted from the end
        with changed(path, bytes(data)):
            noticed += check(saved, workdir)
    return noticed


def truncations(saved: Saved, workdir: Path, count: int) -> int:
    """How many of so many files that are cut short somewhere are noticed."""
    random, noticed = np.random.default_rng(count), 0
    for i in range(count):
        name = list(saved.files)[i % len(saved.files)]
        path = workdir / "checkpoints" / str(NEWEST) / name
        data = path.read_bytes()
        with changed(path, data[: random.integers(len(data))]):
            noticed += check(saved, workdir)
    return noticed


# Orbax writes them after the manifest, and nothing that is restored is in them.
HARMLESS = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def test_every_file_that_is_deleted(saved: Saved, workdir: Path) -> None:
    assert len(saved.files) > 40 and "MANIFEST.json" in saved.files
    for name in saved.files:
        with changed(workdir / "checkpoints" / str(NEWEST) / name, None):
            assert check(saved, workdir) == (name not in HARMLESS), name


@pytest.mark.parametrize(
    "now",
    [b'"performance_meurics"', b'"performance_metrics": 7, "x"', b"", b"\xff", b"[7]"],
)
def test_orbaxs_own_note_is_damaged(saved: Saved, workdir: Path, now: bytes) -> None:
    """Orbax would end with a ValueError as soon as the directory is opened."""
    path = workdir / "checkpoints" / str(NEWEST) / "_CHECKPOINT_METADATA"
    data = path.read_bytes()
    assert b'"performance_metrics"' in data
    whole = data.replace(b'"performance_metrics"', now) if len(now) > 9 else now
    with changed(path, whole):
        assert not check(saved, workdir)
    number = re.sub(rb'("commit_timestamp_nsecs": )\d+', rb"\g<1>9" + b"0" * 40, data)
    assert number != data
    with changed(path, number):
        assert not check(saved, workdir)


def test_some_flips_and_truncations(saved: Saved, workdir: Path) -> None:
    assert flips(saved, workdir, 20) >= 19
    assert truncations(saved, workdir, 20) >= 18


@pytest.mark.slow
def test_many_flips_and_truncations(saved: Saved, workdir: Path) -> None:
    noticed = flips(saved, workdir, 500), truncations(saved, workdir, 200)
    print(f"noticed: {noticed[0]} of 500 flips, {noticed[1]} of 200 truncations; the "
          "others were restored with the same bits")  # fmt: skip
    assert noticed[0] >= 495 and noticed[1] >= 190


def chunks(step: Path) -> list[Path]:
    """The files with the data of the parameters, the largest last.

    Orbax may have copied what one process wrote, and then reads the copy.
    """
    found = [path for path in (step / "params").rglob("*") if path.parent.name == "d"]
    return sorted(found, key=lambda path: path.stat().st_size)


def flip_a_bit(step: Path) -> None:
    """As a bad disk does it."""
    path = chunks(step)[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def cut_the_arrays(step: Path) -> None:
    for path in chunks(step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_an_item(step: Path) -> None:
    shutil.rmtree(step / "params")


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def mix(step: Path) -> None:
    """The parameters of another step."""
    shutil.rmtree(step / "params")
    shutil.copytree(step.parent / str(BEFORE) / "params", step / "params")


def positions(**changes: Any) -> Callable[[Path], None]:
    def change(step: Path) -> None:
        path = step / "position" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def garble_shapes(step: Path) -> None:
    path = step / "params" / "_METADATA"
    path.write_text(path.read_text().replace("mlp", "mlq").replace("Mlp", "Mlq"))


def as_before_manifests(step: Path) -> None:
    """A checkpoint as versions without manifests wrote it."""
    (step / "MANIFEST.json").unlink()
    path = step / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))


DAMAGES = [
    (flip_a_bit, "is not what was saved"),
    (cut_the_arrays, "bytes of"),
    (remove_an_item, "is missing"),
    (empty, "half a copy"),
    (mix, "params/"),
    (positions(step=29), "position/metadata is not what was saved"),
]


@pytest.mark.parametrize("damage, said", DAMAGES)
def test_the_one_before_is_taken(
    damage: Callable[[Path], None],
    said: str,
    saved: Saved,
    workdir: Path,
    told: list[str],
) -> None:
    damage(workdir / "checkpoints" / str(NEWEST))
    found = checkpoints.choose(epath.Path(workdir))  # moves nothing
    params = damage in (flip_a_bit, cut_the_arrays)  # `load` reads the average
    assert found.name == str(NEWEST if params and "bytes" not in said else BEFORE)
    told.clear()
    step, arrays = saved.restore(workdir)
    assert step == BEFORE
    assert_same_content(arrays, saved.arrays[BEFORE])
    told = [line for line in told if f"is broken (step {NEWEST}: " in line]
    assert len(told) == 1 and said in told[0]
    aside = workdir / "broken_checkpoints" / f"{NEWEST}.0"
    assert aside.is_dir() and said in aside.with_name(f"{NEWEST}.0.txt").read_text()
    assert cli.saved_steps(workdir) == [BEFORE]


OLD_DAMAGES = [
    (cut_the_arrays, "OUT_OF_RANGE"),
    (remove_an_item, "params: missing"),
    (garble_shapes, ""),
    (positions(step=29), "position is not of step 30"),
    (positions(step="30"), "position is not of step 30"),
    (positions(step=-5), "position is not of step 30"),
    (positions(step=None), "position is not of step 30"),
    (positions(stream=None), "position is not of step 30"),
]


@pytest.mark.parametrize("damage, said", OLD_DAMAGES)
def test_one_without_a_manifest(
    damage: Callable[[Path], None],
    said: str,
    saved: Saved,
    workdir: Path,
    told: list[str],
) -> None:
    newest = workdir / "checkpoints" / str(NEWEST)
    as_before_manifests(newest)
    damage(newest)
    step, arrays = saved.restore(workdir)
    assert step == BEFORE and said in told[0]
    assert_same_content(arrays, saved.arrays[BEFORE])


def test_one_without_a_manifest_loads_and_says_so(
    saved: Saved, workdir: Path, told: list[str]
) -> None:
    as_before_manifests(workdir / "checkpoints" / str(NEWEST))
    with saved.open(workdir) as opened:
        restored = opened.restore(saved.run.abstract_state)
        assert restored is not None and opened.position.step == NEWEST
        assert_same_content(arrays_of(restored), saved.arrays[NEWEST])
        assert ["before checkpoints had a manifest" in n for n in opened.notes] == [
            True
        ]
    assert checkpoints.choose(epath.Path(workdir)).name == str(NEWEST)
    assert ["before checkpoints had a manifest" in line for line in told] == [True]


def test_a_checkpoint_under_another_number(saved: Saved, workdir: Path) -> None:
    directory = workdir / "checkpoints"
    shutil.copytree(directory / str(NEWEST), directory / str(NEWEST + 1))
    step, arrays = saved.restore(workdir)
    assert step == NEWEST
    assert_same_content(arrays, saved.arrays[NEWEST])
    reason = workdir / "broken_checkpoints" / f"{NEWEST + 1}.0.txt"
    assert "it holds step 30" in reason.read_text()


def test_a_whole_one_of_another_model_stays(saved: Saved, workdir: Path) -> None:
    """The config is wrong, and not the files."""
    for old in (False, True):
        if old:
            for step in (BEFORE, NEWEST):
                as_before_manifests(workdir / "checkpoints" / str(step))
        other = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding),
            saved.run.abstract_state,
        )
        with (
            saved.open(workdir) as opened,
            pytest.raises(UserError, match="30 is of another model"),
        ):
            opened.restore(other)
        assert cli.saved_steps(workdir) == [BEFORE, NEWEST]


def test_all_are_damaged(saved: Saved, workdir: Path) -> None:
    for step in (BEFORE, NEWEST):
        cut_the_arrays(workdir / "checkpoints" / str(step))
        (workdir / "checkpoints" / str(step) / "config" / "metadata").unlink()
    with pytest.raises(UserError, match=r"(?s)no checkpoint in .*30: .*28: "):
        saved.restore(workdir)
    with pytest.raises(UserError, match=r"(?s)no whole checkpoint.*30.*28.*fsck"):
        vit_jax.load(str(workdir))
    assert cli.saved_steps(workdir) == [BEFORE, NEWEST]


def test_load(saved: Saved, workdir: Path, told: list[str]) -> None:
    """Takes the one before, and refuses one that was named."""
    newest = workdir / "checkpoints" / str(NEWEST)
    shutil.rmtree(newest / "ema_params" / "d")
    theirs = saved.arrays[BEFORE]
    theirs = {n: x for n, x in theirs.items() if n.startswith("ema_params")}
    assert_same_content(vit_jax.load(str(workdir)).arrays(), theirs)
    assert "30 is damaged: ema_params/d/" in told[0]
    for path, step in ((workdir, NEWEST), (newest, None)):
        with pytest.raises(UserError, match="30 is damaged: ema_params/d/"):
            vit_jax.load(str(path), step=step)
    assert cli.saved_steps(workdir) == [BEFORE, NEWEST]


def test_the_config_of_a_checkpoint_replaces_a_damaged_one(
    saved: Saved, workdir: Path, told: list[str]
) -> None:
    stored = json.loads(json.dumps(saved.config))
    for damage in (b"", b"{", b"\xff", b"[" * 100_000, b"[]", None):
        path = workdir / "config.json"
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        read = config.load(str(workdir)).to_dict()
        assert json.loads(json.dumps(read)) == stored
        assert f"the config of {workdir}/checkpoints/30 is used" in told[-1]


@pytest.mark.parametrize("number", range(4))
def test_a_kill_while_the_position_is_replaced(
    number: int, saved: Saved, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment the checkpoint is whole, with the old position or the new one."""
    newest = epath.Path(workdir / "checkpoints" / str(NEWEST))
    position = reading.read_position(newest)
    position.pending = {"loss": 1.0}
    write, calls = manifest.durable.write, []

    def killed(path: Any, data: bytes) -> None:
        if len(calls) == number:
            raise InterruptedError
        calls.append(path)
        write(path, data)

    monkeypatch.setattr(manifest.durable, "write", killed)
    with contextlib.suppress(InterruptedError):
        reading.write_position(newest, position)
    assert reading.examine(newest)
    assert reading.read_position(newest).pending == (
        {"loss": 1.0} if number > 1 else None
    )


def test_the_names_of_the_classes_are_in_the_checkpoint(
    saved: Saved, workdir: Path, told: list[str]
) -> None:
    """labels.json is taken where it is good, since it may be edited."""
    newest = epath.Path(workdir / "checkpoints" / str(NEWEST))
    names = saved.run.dataset.label_names
    assert names is not None and reading.read_label_names(newest) == names
    path = workdir / "labels.json"
    path.write_text(json.dumps(["other"]))
    assert reading.read_label_names(newest) == ("other",)
    for damage in (b"", b"{", b"\xff", b"[" * 100_000, b"[1]"):
        path.write_bytes(damage)
        assert reading.read_label_names(newest) == names
        assert f"{path} is damaged" in told[-1]
    shutil.rmtree(newest / "labels")
    with pytest.raises(UserError, match="is no list of names: correct or remove it"):
        reading.read_label_names(newest)


def test_processes_share_the_work(
    saved: Saved, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read by one of them, and one of them notices."""
    newest = epath.Path(workdir / "checkpoints" / str(NEWEST))
    digest, read = manifest._digest, []

    def noted(path: epath.Path) -> Any:
        read.append(str(path.relative_to(newest)))
        return digest(path)

    monkeypatch.setattr(manifest, "_digest", noted)
    for number in range(3):
        assert manifest.verify(newest, part=(number, 3))
    assert sorted(read) == sorted(saved.files.keys() - HARMLESS - {manifest.NAME})
    flip_a_bit(Path(newest))
    noticed = 0
    for number in range(3):
        try:
            manifest.verify(newest, part=(number, 3))
        except Damaged:
            noticed += 1
    assert noticed == 1


def test_what_is_not_the_files_fault_is_no_damage(
    saved: Saved, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission, or no memory: a good checkpoint must not be put aside for it."""

    def refused(path: epath.Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "_digest", refused)
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            saved.restore(workdir)
    for error in (MemoryError(), ValueError("RESOURCE_EXHAUSTED: out of memory")):
        for verified in (False, True):
            with pytest.raises(type(error)), reading.damages(verified=verified):
                raise error
    with pytest.raises(KeyError), reading.damages(verified=True):
        raise KeyError("a defect of ours")
    assert cli.saved_steps(workdir) == [BEFORE, NEWEST]


def test_links_in_a_circle_end(saved: Saved, workdir: Path) -> None:
    newest = workdir / "checkpoints" / str(NEWEST)
    for name in ("one", "two"):
        (newest / name).symlink_to(newest)
    assert saved.restore(workdir)[0] == BEFORE


def test_a_directory_whose_name_is_no_number(saved: Saved, workdir: Path) -> None:
    """`str.isdigit` says of it that it is one."""
    (workdir / "checkpoints" / "\N{SUPERSCRIPT TWO}").mkdir()
    assert checkpoints.choose(epath.Path(workdir)).name == str(NEWEST)
    assert saved.restore(workdir)[0] == NEWEST
