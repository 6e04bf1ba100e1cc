"""Our float32 training step on the CPU against timm's, eager and compiled.

    pip install -e '.[crosscheck]'
    python benchmarks/cpu_step.py

Each contender is a process of its own that waits while another is measured; the rounds
take turns, so that a slow spell of the machine hits all. A step is forward pass,
backward pass and AdamW on the same kind of batch: float32, 224 px, 1,000 classes, no
dropout. Medians over the rounds are compared. Beside them stands what share of the
framework's own large-matmul rate (2,048 x 2,048 in float32, in the same round) the
step's matrix products reach: a ViT's training step is 6 times the multiply-adds of its
forward pass in FLOPs (2 for a multiply-add, forward and twice that backward).
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

VARIANTS = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224"}
MULTIPLY_ADDS = {"Ti/16": 1.258e9, "S/16": 4.608e9}  # of the forward pass, an image
CONTENDERS = ("vit_jax", "timm eager", "timm compiled")
MATMUL = 2048

Timed = Callable[[], None]


def ours(variant: str, batch_size: int) -> tuple[Timed, Timed]:
    """A training step of vit_jax, as `vit_jax.training` runs it, and a matmul."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax import config, host_memory, sharding
    from vit_jax.program import Program
    from vit_jax.state import init_state

    class Data:
        image_shape, label_classes = (224, 224, 3), None
        mean = std = (0.5, 0.5, 0.5)

    host_memory.keep_freed_memory()
    overrides = [
        ("batch_size", str(batch_size)),
        ("model.dtype", "float32"),
        ("model.dropout", "0"),
        ("model.representation_size", "none"),
    ]
    keys = config.load(f"configs/imagenet1k.py:{variant}", overrides).to_dict()
    sections = ("model", "loss", "optim", "mesh")
    others = ("seed", "batch_size", "accumulation_steps", "mixup", "ema")
    program = Program(
        Data(),
        jax.devices(),
        total_steps=100_000,
        num_classes=1000,
        **{key: keys[key] for key in (*sections, *others)},
    )
    state = init_state(program.initialize, program.abstract_state)
    train_step = program.compile_train_step()
    random = np.random.default_rng(0)
    shape = (batch_size, *Data.image_shape)
    batch = sharding.put_batch(
        {
            "image": random.integers(0, 256, shape, dtype=np.uint8),
            "label": random.integers(0, 1000, batch_size, dtype=np.int32),
            "mask": np.ones(batch_size, bool),
        },
        sharding.batch_sharding(program.mesh),
        batch_size,
    )
    square = jnp.asarray(random.normal(size=(MATMUL, MATMUL)), jnp.float32)
    product = jax.jit(jnp.matmul)

    def step() -> None:
        nonlocal state
        state, scalars = train_step(state, batch)
        jax.block_until_ready(scalars)

    return step, lambda: jax.block_until_ready(product(square, square))


def timms(variant: str, batch_size: int, *, compiled: bool) -> tuple[Timed, Timed]:
    """The same step by timm and PyTorch, with the fastest AdamW that PyTorch has."""
    timm, torch = (importlib.import_module(name) for name in ("timm", "torch"))
    torch.manual_seed(0)
    model = timm.create_model(VARIANTS[variant], num_classes=1000)
    if compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    images = torch.randn(batch_size, 3, 224, 224)
    labels = torch.randint(0, 1000, (batch_size,))
    square = torch.randn(MATMUL, MATMUL)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step, lambda: torch.mm(square, square)


def serve(contender: str, variant: str, batch_size: int) -> None:
    """Warms up, then times so many steps and matmuls as each line of stdin says."""
    if contender == "vit_jax":
        step, matmul = ours(variant, batch_size)
    else:
        step, matmul = timms(variant, batch_size, compiled=contender == "timm compiled")
    for _ in range(3):
        step()
        matmul()
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        times = []
        for timed, count in ((step, steps), (matmul, 5)):
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                timed()
            times += [
                (time.perf_counter() - began) / count,
                (time.process_time() - cpu) / count,
            ]
        print(json.dumps(times), flush=True)


def start(contender: str, variant: str, batch_size: int) -> subprocess.Popen[str]:
    arguments = ["--serve", contender, "--variant", variant]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments, "--batch_size", str(batch_size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            return process
    raise SystemExit(f"{contender} ended before it began")


def measure(variant: str, batch_size: int, *, rounds: int, steps: int) -> None:
    workers = {c: start(c, variant, batch_size) for c in CONTENDERS}
    times: dict[str, list[list[float]]] = {c: [] for c in CONTENDERS}
    for _ in range(rounds):
        for contender, process in workers.items():
            assert process.stdin is not None and process.stdout is not None
            print(steps, file=process.stdin, flush=True)
            times[contender].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.communicate()
    print(f"{variant}, batch {batch_size}, float32, medians of {rounds} rounds")
    flops = 6 * MULTIPLY_ADDS[variant] * batch_size
    rates = {}
    for contender, rows in times.items():
        step, step_cpu, matmul, _ = (
            statistics.median(x) for x in zip(*rows, strict=True)
        )
        rates[contender] = batch_size / step
        share = flops / step / (2 * MATMUL**3 / matmul)
        print(
            f"  {contender:14} {batch_size / step:6.2f} images/s  "
            f"{step_cpu / batch_size:.4f} CPU-s an image  "
            f"{share:4.0%} of its matmul rate  {[round(r[0], 2) for r in rows]}"
        )
    best = max(rate for name, rate in rates.items() if name != "vit_jax")
    print(f"  vit_jax is {rates['vit_jax'] / best:.2f} times as fast as timm's best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help="default: all")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.variant, args.batch_size)
        return
    for variant in [args.variant] if args.variant else VARIANTS:
        measure(variant, args.batch_size, rounds=args.rounds, steps=args.steps)


if __name__ == "__main__":
    main()
