"""What the training loop adds to the compiled step, and what a save costs.

    python benchmarks/loop_overhead.py

The loop as users run it (input pipeline, metrics read a step late, a line in
metrics.jsonl and TensorBoard each `--log_every` steps) against the same compiled step
called in a tight loop on one batch that is on the device already. The two alternate
in blocks of steps; medians over the blocks are compared, so that a slow spell of the
machine hits both.
"""

import argparse
import resource
import statistics
import tempfile
import time

import jax
from etils import epath

from vit_jax import training
from vit_jax.checkpoints import Checkpoints
from vit_jax.run import Run
from vit_jax.state import init_state


def config(args: argparse.Namespace) -> dict:
    from vit_jax import config as configs

    overrides = {
        "model.variant": args.variant,
        "data.image_size": str(args.image_size),
        "data.train.crop": "inception",
        "data.train.padding": "none",
        "batch_size": str(args.batch_size),
        "total_epochs": "none",
        "total_steps": str(args.steps * args.blocks),
        "log_every": str(args.log_every),
        "optim.warmup_steps": "0",
        "checkpoint.every": str(10**9),
    }
    overrides |= {
        f"model.{key}": "none"
        for key in ("patch_size", "width", "depth", "mlp_dim", "num_heads")
    }
    return configs.load("configs/quickstart.py", list(overrides.items())).to_dict()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="in a block")
    parser.add_argument("--blocks", type=int, default=5, help="of each kind")
    parser.add_argument("--log_every", type=int, default=10)
    args = parser.parse_args()

    settings = config(args)
    run = Run(**settings)
    state = init_state(run.program.initialize, run.abstract_state)
    step = run.program.compile_train_step()
    workdir = epath.Path(tempfile.mkdtemp())
    saved = Checkpoints(workdir / "checkpoints", settings, run.stream, **run.checkpoint)
    observer = training.observe(workdir, run, saved)
    fixed = next(run.batches(0))
    batches = run.batches(0)
    batch = next(batches)

    bare, loop, number = [], [], 0
    for _ in range(args.blocks):
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(args.steps):
            state, scalars = step(state, fixed)
        jax.block_until_ready(state)
        bare.append((time.perf_counter() - began) / args.steps)

        began = time.perf_counter()
        for _ in range(args.steps):
            number += 1
            state, scalars = step(state, batch)
            observer.push(number, scalars)
            with observer.timer.waiting():
                batch = next(batches, None) or fixed
        observer.drain()
        jax.block_until_ready(state)
        loop.append((time.perf_counter() - began) / args.steps)

    began, cpu = time.perf_counter(), cpu_seconds()
    saved.position.step = number
    saved.save(state)
    blocked = time.perf_counter() - began
    saved.wait()
    cpu = cpu_seconds() - cpu
    a, b = statistics.median(bare), statistics.median(loop)
    what = f"{args.variant} at {args.image_size} px, batch {args.batch_size}"
    print(f"{what}, medians of {args.blocks} blocks of {args.steps} steps")
    print(f"bare step {1000 * a:8.2f} ms   {[round(1000 * x, 1) for x in bare]}")
    print(f"loop      {1000 * b:8.2f} ms   {[round(1000 * x, 1) for x in loop]}")
    print(f"the loop adds {100 * (b / a - 1):.1f}%")
    print(
        f"a save blocks the loop for {blocked:.2f} s and costs {cpu:.2f} CPU-s in all"
    )


if __name__ == "__main__":
    main()
