"""Damaged files of a workdir: the run goes on, or one message says what to do."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from tests import cli
from tests.fuzz import mutation
from vit_jax import checkpoints, config, fsck, provenance, summary, workdirs
from vit_jax.checkpoints import reading
from vit_jax.config import reading as configs
from vit_jax.jsonlines import JsonLines

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that evaluates once."""
    root = tmp_path_factory.mktemp("whole") / "run"
    flags = f"--config.total_steps={STEPS}", "--config.checkpoint.every=3"
    cli.run(f"--config={cli.EVERYTHING}", f"--workdir={root}", *flags)
    return root


def of_config(root: epath.Path) -> None:
    """Of a run that goes on, and of one that begins with the same config."""
    stored = configs.read_stored(root / "config.json")
    with contextlib.suppress(AttributeError):  # keys of another kind: of load
        config.complete(stored)
    workdirs.write_config(root, {"seed": 3, "data": {"name": "x"}})
    assert workdirs.read_config(root) == {"seed": 3, "data": {"name": "x"}}


def of_metrics(root: epath.Path) -> None:
    """A run goes on from step 3, and ends."""
    lines = JsonLines(root / "metrics.jsonl", restored_step=3)
    for step in range(4, STEPS + 1):
        lines.write(step, {"train/loss": 1 / step, "test/accuracy": 0.5})
    lines.close()
    run: Any = SimpleNamespace(evaluators=[], total_steps=STEPS)
    last = summary.summarize(root, run, 1.0)
    assert last["train/loss"] == 1 / STEPS
    text = (root / "metrics.jsonl").read_text()
    found = [json.loads(line)["step"] for line in text.splitlines()]
    assert found[-3:] == [4, 5, 6] and all(step <= STEPS for step in found)
    assert (root / "curves.png").read_bytes().startswith(b"\x89PNG")


def of_starts(root: epath.Path) -> None:
    """The workdir's records, of which none that is whole is lost."""
    before = provenance.read(root)
    about = {"started": "now", "command": ["x"]}
    provenance.write(root, about, {"seed": 3}, step=3, hosts=["a"], devices="1 x cpu")
    after = provenance.read(root)
    assert after[: len(before)] == before and after[-1]["command"] == ["x"]


def of_labels(root: epath.Path) -> None:
    names = reading.read_label_names(root / "checkpoints" / str(STEPS))
    assert names is not None and all(isinstance(name, str) for name in names)


def of_checkpoint(root: epath.Path) -> None:
    """The newest is whole as it was, or the one before is taken."""
    chosen = checkpoints.choose(root)
    assert chosen.name in ("3", str(STEPS))
    if chosen.name == str(STEPS):
        assert reading.read_position(chosen).step == STEPS
        assert reading.read_config(chosen)["seed"] == 3


FILES: dict[str, Callable[[epath.Path], None]] = {
    "config.json": of_config,
    "metrics.jsonl": of_metrics,
    "runs.jsonl": of_starts,
    "labels.json": of_labels,
    f"checkpoints/{STEPS}/position/metadata": of_checkpoint,
    f"checkpoints/{STEPS}/config/metadata": of_checkpoint,
    f"checkpoints/{STEPS}/MANIFEST.json": of_checkpoint,
    f"checkpoints/{STEPS}/_CHECKPOINT_METADATA": of_checkpoint,
    f"checkpoints/{STEPS}/params/_METADATA": of_checkpoint,
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_workdir(
    name: str, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    shutil.copytree(workdir, root)
    texts = ("config.json", "metrics.jsonl", "runs.jsonl", "labels.json")
    kept = {text: (root / text).read_bytes() for text in texts}
    path, read = root / name, FILES[name]
    whole = path.read_bytes()

    def use(data: bytes) -> None:
        for text, content in kept.items():
            (root / text).write_bytes(content)
        path.write_bytes(data)
        with contextlib.redirect_stdout(None):
            assert fsck.main(["fsck", str(root)]) in (0, 1)
            read(epath.Path(root))

    assert mutation.check(use, iter([whole]), tmp_path / "input") == (1, 0)
    damaged = mutation.mutations([whole], 200)
    mutation.check(use, damaged, tmp_path / "input")
    lines = whole.decode().splitlines()
    if name.endswith("MANIFEST.json"):
        return  # its second line is the digest of the first
    if all(line.startswith("{") for line in lines) and len(lines) > 1:  # JSON lines
        changed = (
            "\n".join([*lines[:1], text, *lines[2:], ""])
            for text in mutation.changed(lines[1], 200)
        )
    else:
        changed = mutation.changed(whole.decode(), 200)
    inputs = (text.encode("utf-8", "surrogatepass") for text in changed)
    mutation.check(use, inputs, tmp_path / "input")
