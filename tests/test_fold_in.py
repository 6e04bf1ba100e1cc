"""Without any one `fold_in` the randomness check of test_resume fails.

Each call is deleted in a copy of the package (its first argument stays), the copy is
run by the real command line, and the check that holds for the package must not.
"""

import ast
import shutil
import sys
import types
from pathlib import Path

import pytest

from tests import cli, test_resume
from tests.data import test_mixture

NAMES = ("fold_in", "random_bits")
# The order that a dataset is prepared in is no run's: see data/test_prepare.py.
ELSEWHERE = "vit_jax/data/prepare"
# Not in the recipe of every random feature: the golden values must not hold.
OF_MIXTURES = ("mixture_parts", "_thin", "mixture_record_numbers")


def sites(*, mixtures: bool) -> list[tuple[Path, ast.Call]]:
    """Every call of a function that derives a key, in the package.

    Args:
      mixtures: those in the functions of mixtures, else all others.
    """
    found = []
    for path in sorted((cli.ROOT / "vit_jax").rglob("*.py")):
        relative, tree = path.relative_to(cli.ROOT), ast.parse(path.read_text())
        if str(relative).startswith(ELSEWHERE):
            continue
        of_mixtures = {
            id(call)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in OF_MIXTURES
            for call in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (id(node) in of_mixtures) == mixtures:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                name = node.func.id if isinstance(node.func, ast.Name) else name
                if name in NAMES:
                    found.append((relative, node))
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
    names = [str(path) for path, _ in sites(mixtures=False)]
    assert names.count("vit_jax/steps.py") == 2
    assert names.count("vit_jax/data/sampler.py") >= 5
    assert len(sites(mixtures=True)) == 4


@pytest.mark.parametrize(
    "path, call", sites(mixtures=True), ids=lambda x: getattr(x, "lineno", str(x))
)
def test_without_it_a_mixture_is_another(
    path: Path, call: ast.Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = without((cli.ROOT / path).read_text(), call)
    module = types.ModuleType("changed")
    monkeypatch.setitem(sys.modules, "changed", module)
    exec(compile(changed, str(path), "exec"), module.__dict__)
    test_mixture.test_golden_mixture()
    monkeypatch.setattr(test_mixture, "sampler", module)
    with pytest.raises(AssertionError):
        test_mixture.test_golden_mixture()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, call", sites(mixtures=False), ids=lambda x: getattr(x, "lineno", str(x))
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
