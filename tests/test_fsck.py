"""python -m vit_jax.fsck, over a workdir that is whole and then is not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints.test_matching import opened, state
from vit_jax import fsck


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a run leaves it."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    with opened(workdir / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.position.step = step
            checkpoints.save(state(step))
    (workdir / "evals").mkdir()
    (workdir / "config.json").write_text('{"seed": 0}')
    (workdir / "labels.json").write_text('["cat", "dog"]')
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (workdir / "runs.jsonl").write_text('{"started": "now", "step": 0}\n' * 2)
    (workdir / "evals" / "test-2.json").write_text('{"step": 2}')
    return workdir


@pytest.fixture
def workdir(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "workdir")
    return tmp_path / "workdir"


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what was printed."""
    code = fsck.main(["fsck", str(path)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_whole_one(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = check(workdir, capsys)
    assert code == 0
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["good"] * 7
    assert lines[-1] == "The newest checkpoint that is whole is of step 2."
    assert check(workdir / "checkpoints" / "1", capsys)[0] == 0


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("checkpoints/2/params/_METADATA", "{}", "params/_METADATA has 2 bytes of "),
        ("checkpoints/2/MANIFEST.json", "{}", "MANIFEST.json is damaged"),
        ("checkpoints/2/params/other", "", "params/other is not of it"),
        ("config.json", "{", "config.json: "),
        ("config.json", "[]", "it is no JSON object"),
        ("labels.json", "{}", "it is no JSON list"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n', "line 2 is no JSON"),
        ("metrics.jsonl", '{"step": 2}\n{"step": 1}\n', "line 2 is of step 1, after"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "metrics.jsonl: "),
        ("runs.jsonl", "1\n", "line 1 is no JSON object"),
        ("evals/test-2.json", "", "evals/test-2.json: "),
    ],
)
def test_what_is_damaged(
    name: str,
    content: str,
    said: str,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (workdir / name).write_text(content)
    code, printed = check(workdir, capsys)
    assert code == 1
    bad = [line for line in printed.splitlines() if line.startswith("damaged ")]
    assert len(bad) == 1 and said in bad[0]
    newest = 1 if name.startswith("checkpoints/2") else 2
    assert f"that is whole is of step {newest}." in printed


def test_a_line_that_a_kill_has_cut_is_no_damage(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    assert check(workdir, capsys)[0] == 0


def test_one_without_a_manifest_is_read(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = workdir / "checkpoints" / "2"
    (newest / "MANIFEST.json").unlink()
    metadata = newest / "_CHECKPOINT_METADATA"
    old = json.loads(metadata.read_text()) | {"custom_metadata": {}}
    metadata.write_text(json.dumps(old))
    code, printed = check(workdir, capsys)
    assert code == 0 and f"readable  {newest}: no manifest" in printed
    for path in (newest / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    code, printed = check(workdir, capsys)
    assert code == 1 and f"damaged   {newest}: ValueError: " in printed


def test_what_harms_nothing_is_noted(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    (workdir / "broken_checkpoints" / "9.0").mkdir(parents=True)
    (workdir / "broken_checkpoints" / "9.0.txt").write_text("a bit was lost\n")
    code, printed = check(workdir, capsys)
    assert code == 0
    assert "3.orbax-checkpoint-tmp: no checkpoint" in printed
    assert "9.0: put aside: a bit was lost" in printed


@pytest.mark.parametrize(
    "argv, code, said",
    [
        (["--help"], 0, "python -m vit_jax.fsck WORKDIR"),
        ([], 2, "WORKDIR is needed"),
        (["--fix", "a"], 2, "--fix is not a flag"),
        (["/dev/null"], 2, "expected the workdir of a run"),
        (["no/such/place"], 2, "expected the workdir of a run"),
    ],
)
def test_the_command_line(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fsck.main(["fsck", *argv]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
