"""README's "Use what you trained", block by block, as it stands there.

Training is shortened; nothing else is changed.
"""

import json
import sys
from pathlib import Path

import pytest

from tests import cli, readme

BLOCKS = readme.blocks("Use what you trained")
SHORTER = {
    "workdirs/quickstart": "--config.total_epochs=4",
    "workdirs/finetuned": "--config.total_epochs=0.5",
    "workdirs/scratch": "--config.total_epochs=0.5",
}


def walk(folder: Path, *, skip: str | None) -> list[str]:
    """Runs the blocks in a folder, but those with `skip` in them; what each printed."""
    found = [
        (language, readme.with_flags(text, SHORTER))
        for language, text in BLOCKS
        if skip is None or skip not in text
    ]
    return list(
        readme.run(
            found, sys.executable, folder, PYTHONPATH=str(cli.ROOT), XLA_FLAGS=""
        )
    )


def last_accuracy(workdir: Path) -> float:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["test/accuracy"]


def check(folder: Path, printed: list[str], *, ways: int) -> None:
    """What README says of it holds: the same accuracy in all ways, and fine-tuning."""
    reported = last_accuracy(folder / "workdirs/quickstart")
    accuracies = [
        float(line.removeprefix("accuracy "))
        for text in printed
        for line in text.splitlines()
        if line.startswith("accuracy ")
    ]
    assert len(accuracies) == ways
    for accuracy in accuracies:  # one image may stand on the edge
        assert accuracy == pytest.approx(reported, abs=1.1 / 2000)
    assert reported > 0.6
    assert len(list((folder / "overlays").glob("*.png"))) > 100
    finetuned = last_accuracy(folder / "workdirs/finetuned")
    scratch = last_accuracy(folder / "workdirs/scratch")
    print(f"{reported=} {accuracies=} {finetuned=} {scratch=}")
    assert finetuned > scratch + 0.05


@pytest.mark.slow
def test_walk_through_the_readme(tmp_path: Path) -> None:
    assert len(BLOCKS) == 9
    check(tmp_path, walk(tmp_path, skip="transformers"), ways=2)


@pytest.mark.crosscheck
def test_walk_through_the_readme_with_transformers(tmp_path: Path) -> None:
    check(tmp_path, walk(tmp_path, skip=None), ways=3)
