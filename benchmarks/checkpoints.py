"""What the manifest of a checkpoint costs: saving and restoring, with it and without.

    python benchmarks/checkpoints.py

Arrays of random numbers, which do not compress, are saved and restored several times,
by turns with the manifest and without, so that a slow spell of the machine hits both.
Medians are compared. A save is timed to its end, in its own thread; what the training
loop waits for is how long `save` takes to return. Files are read from the page cache.
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax.checkpoints import Checkpoints, manifest
from vit_jax.state import TrainState


def make_state(gigabytes: float) -> TrainState:
    """Parameters and two moments, in arrays of 20 MB."""
    random = np.random.default_rng(0)
    count = max(1, round(gigabytes * 1e9 / 3 / 20e6))

    def tree() -> dict[str, jax.Array]:
        numbers = (
            random.standard_normal((5_000, 1_000), np.float32) for _ in range(count)
        )
        return {f"w{i}": jnp.asarray(x) for i, x in enumerate(numbers)}

    return TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=tree(),
        opt_state={"mu": tree(), "nu": tree()},
        ema_params=None,
        bad_examples=jnp.asarray(0, jnp.int32),
    )


@contextlib.contextmanager
def without_manifest() -> Iterator[None]:
    """Nothing is read and synced for a manifest, and none is expected."""
    with (
        mock.patch.object(manifest, "write"),
        mock.patch.object(manifest, "verify", return_value=False),
    ):
        yield


def measure(directory: Path, state: TrainState, *, verified: bool) -> dict[str, float]:
    """Seconds of one save and one restore."""
    shutil.rmtree(directory, ignore_errors=True)
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        if not verified:
            stack.enter_context(without_manifest())
        saved = stack.enter_context(Checkpoints(epath.Path(directory), {}, {}))
        saved.save(state)
        saved.wait()  # the first one makes pools of threads
        saved.position.step = 1
        state = state.replace(step=state.step + 1)  # type: ignore[attr-defined]
        began = time.perf_counter()
        saved.save(state)
        seconds["save, until the loop goes on"] = time.perf_counter() - began
        saved.wait()
        seconds["save, to its end"] = time.perf_counter() - began
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
        )
        began = time.perf_counter()
        jax.block_until_ready(saved.restore(abstract))
        seconds["restore"] = time.perf_counter() - began
        if verified:
            step = epath.Path(directory / "1")
            began = time.perf_counter()
            manifest.write(step, 1)
            seconds["of a save, the manifest alone"] = time.perf_counter() - began
            began = time.perf_counter()
            manifest.verify(step)
            seconds["of a restore, verifying alone"] = time.perf_counter() - began
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", help="on the disk that is measured")
    args = parser.parse_args()
    state = make_state(args.gigabytes)
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        for _ in range(args.repeats):
            for verified, found in runs.items():
                found.append(measure(Path(directory, "run"), state, verified=verified))
    print(f"{size:.2f} GB, medians of {args.repeats}, in seconds")
    medians = {
        verified: {
            name: statistics.median(seconds[name] for seconds in found)
            for name in found[0]
        }
        for verified, found in runs.items()
    }
    for name, seconds in medians[True].items():
        if name in medians[False]:
            before = medians[False][name]
            print(f"{name:30} {before:7.3f} without, {seconds:7.3f} with a manifest")
            continue
        whole = medians[False]["save, to its end" if "save" in name else "restore"]
        share = 100 * seconds / whole
        print(f"{name:30} {seconds:7.3f}: {share:.1f}%, {seconds / size:.3f} s per GB")


if __name__ == "__main__":
    main()
