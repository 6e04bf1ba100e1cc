"""Without any one `fold_in` the randomness check of test_resume fails.

Each call is deleted in a copy of the package (its first argument stays), the copy is
run by the real command line, and the check that holds for the package must not.
"""

import ast
import shutil
from pathlib import Path

import pytest

from tests import cli, test_resume

NAMES = ("fold_in", "random_bits")


def sites() -> list[tuple[Path, ast.Call]]:
    """Every call of a function that derives a key, in the package."""
    found = []
    for path in sorted((cli.ROOT / "vit_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                name = node.func.id if isinstance(node.func, ast.Name) else name
                if name in NAMES:
                    found.append((path.relative_to(cli.ROOT), node))
    return found


def without(source: str, call: ast.Call) -> str:
    """The source with a call replaced by the call's first argument."""
    segment = ast.get_source_segment(source, call)
    argument = ast.get_source_segment(source, call.args[0])
    assert segment is not None and argument is not None
    lines = source.splitlines(keepends=True)
    start = sum(map(len, lines[: call.lineno - 1])) + call.col_offset
    assert source[start : start + len(segment)] == segment
    return source[:start] + argument + source[start + len(segment) :]


def test_sites_are_found() -> None:
    names = [str(path) for path, _ in sites()]
    assert names.count("vit_jax/steps.py") == 2
    assert names.count("vit_jax/data/sampler.py") >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, call", sites(), ids=lambda x: getattr(x, "lineno", str(x))
)
def test_without_it_the_check_fails(path: Path, call: ast.Call, tmp_path: Path) -> None:
    for folder in ("vit_jax", "tests/recipes"):
        shutil.copytree(cli.ROOT / folder, tmp_path / folder)
    source = (tmp_path / path).read_text()
    (tmp_path / path).write_text(without(source, call))
    workdir = tmp_path / "workdir"
    output = cli.run(
        f"--config={cli.EVERYTHING}",
        f"--workdir={workdir}",
        "--config.total_steps=12",
        root=tmp_path,
        expect=None,
    )
    if not (workdir / "metrics.jsonl").exists():
        assert "Traceback" in output, output  # it does not even run
        return
    with pytest.raises(AssertionError):
        test_resume.check_randomness(workdir)
