"""Whether two commits train the same bits: python -m tests.net.compare OLD [NEW].

The twelve runs of `tests/net/recipe.py` are done by both commits on this machine, with
this interpreter and its packages. Their last states, metrics without timings and
records of evaluations must be the same. Without NEW it is the working tree. Exits with
1 where something differs. Takes minutes; --keep=DIRECTORY keeps the workdirs.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import cli
from tests.environment import DEVICES, FAST_COMPILER
from tests.net import data, recipe

RECIPE = Path(recipe.__file__)


class Outcome(NamedTuple):
    """What a run has left."""

    params: dict[str, str]  # digests by name
    rest: list[str]  # digests of all other arrays, sorted: their names may change
    metrics: list[dict[str, Any]]
    records: dict[str, Any]  # of evaluations, by file


def command(tree: Path, module: str, *args: str) -> str:
    """Runs a command of a tree; its output.

    Raises:
      RuntimeError: if it fails.
    """
    flags = f"{DEVICES.format(4)} {FAST_COMPILER}"
    own = {"XLA_FLAGS": flags, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=tree,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{tree}: {module} {' '.join(args)}:\n{done.stdout}")
    return done.stdout


def train(tree: Path, root: Path, name: str) -> Outcome:
    """Does one of the runs; `root` has a folder "data"."""
    workdir = root / name
    config = f"--config={RECIPE}:{name},{root}/data"
    command(tree, "vit_jax.main", config, f"--workdir={workdir}")
    return outcome(workdir, root)


def outcome(workdir: Path, root: Path) -> Outcome:
    """What a finished run has left; the path of `root` is left out of its records."""
    arrays = cli.saved_arrays(workdir, recipe.STEPS)
    digests = {
        name: f"{x.dtype}{x.shape}{hashlib.sha256(x.tobytes()).hexdigest()}"
        for name, x in arrays.items()
    }
    is_params = {name: name.startswith(("params", "ema_params")) for name in digests}
    records = {
        path.name: json.loads(path.read_text().replace(str(root), "ROOT"))
        for path in sorted((workdir / "evals").glob("*.json"))
    }
    return Outcome(
        params={name: x for name, x in digests.items() if is_params[name]},
        rest=sorted(x for name, x in digests.items() if not is_params[name]),
        metrics=cli.metric_lines(workdir),
        records=records,
    )


def train_all(tree: Path, root: Path, names: Sequence[str]) -> dict[str, Outcome]:
    """The outcomes of the runs by name; the first is always done, for the others."""
    root.mkdir(parents=True)
    data.write(root / "data")
    found = {recipe.FIRST: train(tree, root, recipe.FIRST)}
    (root / "data" / "first").symlink_to(root / recipe.FIRST)
    weights = str(root / "data" / "first.npz")
    command(tree, "vit_jax.convert", str(root / recipe.FIRST), weights, "--to=npz")
    for name in names:
        if name != recipe.FIRST:
            found[name] = train(tree, root, name)
            print(f"{root.name}: {name}", flush=True)
    return found


def differences(old: Outcome, new: Outcome) -> list[str]:
    """What differs, in words; nothing if the bits are the same."""
    found = []
    for name in sorted({*old.params, *new.params}):
        if name not in old.params or name not in new.params:
            found.append(f"{name} is in one alone")
        elif old.params[name] != new.params[name]:
            found.append(f"{name} has other bits")
    if old.rest != new.rest:
        found.append("the rest of the state")
    if len(old.metrics) != len(new.metrics):
        found.append(f"{len(old.metrics)} and {len(new.metrics)} lines of metrics")
    for before, after in zip(old.metrics, new.metrics, strict=False):
        keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        found += [
            f"step {before.get('step')} {k}: {before.get(k)} and {after.get(k)}"
            for k in keys
        ]
    found += [
        f"evals/{name}"
        for name in sorted({*old.records, *new.records})
        if old.records.get(name) != new.records.get(name)
    ]
    return found


def told(same: Outcome) -> str:
    arrays = len(same.params) + len(same.rest)
    steps, records = len(same.metrics), len(same.records)
    return f"the same {arrays} arrays, {steps} steps and {records} records"


@contextlib.contextmanager
def checkout(commit: str | None, where: Path) -> Iterator[Path]:
    """The tree of a commit; None is the working tree."""
    if commit is None:
        yield cli.ROOT
        return
    add = ["git", "worktree", "add", "--quiet", "--detach", str(where), commit]
    subprocess.run(add, cwd=cli.ROOT, check=True)
    try:
        yield where
    finally:
        remove = ["git", "worktree", "remove", "--force", str(where)]
        subprocess.run(remove, cwd=cli.ROOT, check=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--runs", default=",".join(recipe.RUNS))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args(argv)
    names = args.runs.split(",")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = args.keep or scratch
        trees = [
            stack.enter_context(checkout(commit, scratch / f"tree-{side}"))
            for side, commit in (("old", args.old), ("new", args.new))
        ]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            roots = [(root / side).absolute() for side in ("old", "new")]
            old, new = pool.map(train_all, trees, roots, [names, names])
    found = {name: differences(old[name], new[name]) for name in old}
    for name, lines in found.items():
        print(
            f"{name}: {told(old[name]) if not lines else 'DIFFERS'}", *lines, sep="\n  "
        )
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
