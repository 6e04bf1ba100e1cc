"""The real command line, driven from tests."""

import concurrent.futures
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import orbax.checkpoint as ocp

from tests.environment import DEVICES, FAST_COMPILER
from vit_jax import main

ROOT = Path(__file__).parent.parent
EVERYTHING = "tests/recipes/everything.py"
BEST = "test/raw/top5_accuracy"  # of its checkpoints: it is not the last step's


def start(
    *args: str,
    root: Path = ROOT,
    devices: int = 1,
    group: bool = False,
    module: str = "vit_jax.main",
    stdout: int | IO[str] = subprocess.PIPE,
    optimised: bool = False,
) -> subprocess.Popen[str]:
    """Starts `python -m vit_jax.main`.

    Args:
      *args: of the command line.
      root: the checkout.
      devices: of the process.
      group: in a process group of its own.
      module: instead of `vit_jax.main`.
      stdout: where both streams go.
      optimised: for runs of thousands of steps, see `FAST_COMPILER`.
    """
    flags = DEVICES.format(devices) + ("" if optimised else f" {FAST_COMPILER}")
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=root,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(root)},
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=group,
    )


def run(
    *args: str,
    expect: int | None = 0,
    root: Path = ROOT,
    devices: int = 1,
    module: str = "vit_jax.main",
    optimised: bool = False,
) -> str:
    """Runs to the end; returns stdout and stderr. Fails on another exit code."""
    process = start(
        *args, root=root, devices=devices, module=module, optimised=optimised
    )
    output, _ = process.communicate(timeout=1150)
    if expect is not None:
        assert process.returncode == expect, output
    return output


def call(*args: str, expect: int = 0) -> str:
    """The same command line within this process, which has the modules and devices.

    Returns what is printed. Fails on another exit code.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main.main(["vit_jax.main", *args])
    assert code == expect, output.getvalue()
    return output.getvalue()


def start_many(
    count: int,
    *args: str,
    devices: int = 1,
    own: Callable[[int], Sequence[str]] = lambda number: (),
) -> list[subprocess.Popen[str]]:
    """Starts `count` processes of one run, which meet on this machine.

    They compile the same program `count` times: JAX keeps on disk what the first
    process compiled, and no other can use that on CPUs.

    Args:
      count: of processes.
      *args: for all of them.
      devices: of each.
      own: arguments that only the process with this number is given.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}"
    return [
        start(
            *(*args, *together, f"--process_id={i}", *own(i)),
            devices=devices,
        )
        for i in range(count)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Waits for all; their exit codes and outputs, by process number."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        outputs = list(pool.map(lambda p: p.communicate(timeout=1150)[0], processes))
    return [process.returncode for process in processes], outputs


def run_many(count: int, *args: str, devices: int = 1, expect: int = 0) -> list[str]:
    """Runs several processes to the end; their outputs, by process number."""
    codes, outputs = ends(start_many(count, *args, devices=devices))
    assert codes == [expect] * count, (codes, *outputs)
    return outputs


def run_and_signal(
    when: Callable[[float], bool], number: signal.Signals, *args: str
) -> tuple[int, str]:
    """Runs, and sends a signal once `when(seconds)` is true; (exit code, output)."""
    process, began = start(*args), time.monotonic()
    while process.poll() is None:
        if when(time.monotonic() - began):
            process.send_signal(number)
            break
        time.sleep(0.0005)
    output, _ = process.communicate(timeout=1150)
    return process.returncode, output


def metric_lines(workdir: Path, *, timing: bool = False) -> list[dict[str, Any]]:
    lines = [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {k: v for k, v in line.items() if timing or not k.startswith("timing/")}
        for line in lines
    ]


def saved_steps(workdir: Path) -> list[int]:
    names = (p.name for p in (workdir / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def saved_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, read by Orbax without any of our code."""
    import jax
    from etils import epath

    arrays: dict[str, np.ndarray] = {}
    handler = ocp.PyTreeCheckpointHandler()
    for item in ("params", "ema_params", "rest"):
        directory = epath.Path(workdir / "checkpoints" / str(step) / item)
        if not directory.exists():
            continue
        # As NumPy arrays: the devices that wrote it may not be here.
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            handler.metadata(directory).tree,
        )
        restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
        tree = handler.restore(directory, args=restore)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 10
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different, different[:5]
