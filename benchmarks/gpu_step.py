"""Our bfloat16 training step on an NVIDIA GPU against timm's, compiled.

    pip install -e '.[cuda]' torch timm      # for CUDA 13: add 'jax[cuda13]'
    python benchmarks/gpu_step.py

First it checks results: attention and its gradient against NumPy in float64, and five
steps on the GPU against five on the CPU. Then each row of the table: a contender is a
process of its own that waits while the other is measured, and the rounds take turns, so
that a slow spell of the card hits both. A step is forward pass, backward pass, clipping
and AdamW on one batch of 224 px and 1,000 classes; ours is the one that
`vit_jax.train` runs, timm's has autocast, channels_last, SDPA, fused AdamW and
`torch.compile`. Shares are of the card's peak for dense bfloat16 products, a step being
6 times the multiply-adds of its forward pass in FLOPs.

Needs jax, flax, optax and NumPy; without timm there is no comparison. `--tiny` is the
same on a CPU in seconds, as a test.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script
# FLOP/s of dense bfloat16 products with sums in float32, from NVIDIA's data sheets.
PEAKS = {
    "H100 80GB HBM3": 989.4e12,  # SXM
    "H100 PCIe": 756.0e12,
    "H200": 989.4e12,
    "A100": 312.0e12,
    "L4": 121.0e12,
    "RTX 4090": 165.2e12,
}
TIMM = {
    "Ti/16": "vit_tiny_patch16_224",
    "B/16": "vit_base_patch16_224",
    "L/16": "vit_large_patch16_224",
    "H/14": "vit_huge_patch14_224",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one line of the table measures."""

    variant: str
    batch_size: int
    dropout: float
    image_size: int = 224
    depth: int | None = None  # layers, if not those of the variant

    def __str__(self) -> str:
        return f"{self.variant}, {self.batch_size} images, dropout {self.dropout:g}"


SIZES = (("B/16", 128), ("L/16", 64), ("H/14", 32), ("B/16", 256))
GROUPS = tuple(tuple(Row(*size, dropout) for dropout in (0.0, 0.1)) for size in SIZES)
TINY = ((Row("Ti/16", 2, 0.1, image_size=32, depth=1),),)

# --- the contenders


OPTIM = {
    "name": "adamw",
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 10_000,
    "weight_decay": 0.3,
    "clip_norm": 1.0,
}


def program(
    row: Row, devices: Sequence[Any], optim: dict[str, Any] = OPTIM, **model: Any
) -> Any:
    """The program of a run, with the optimiser of the recipe `imagenet1k`."""
    from vit_jax.program import Program

    sides = (row.image_size, row.image_size, 3)
    data: Any = SimpleNamespace(
        image_shape=sides, label_classes=None, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    return Program(
        data,
        devices,
        seed=0,
        batch_size=row.batch_size,
        total_steps=93_834,
        num_classes=1000,
        accumulation_steps=1,
        mixup=0.0,
        ema=None,
        model={
            "variant": row.variant,
            "depth": row.depth,
            "dropout": row.dropout,
            "dtype": "bfloat16",
            **model,
        },
        loss={"name": "softmax_xent"},
        optim=dict(optim),
        mesh={"data": len(devices), "fsdp": 1, "tensor": 1},
    )


def batch(row: Row, mesh: Any) -> Any:
    import numpy as np

    from vit_jax import sharding

    random = np.random.default_rng(0)
    shape = (row.batch_size, row.image_size, row.image_size, 3)
    arrays = {
        "image": random.integers(0, 256, shape, dtype=np.uint8),
        "label": random.integers(0, 1000, row.batch_size, dtype=np.int32),
        "mask": np.ones(row.batch_size, bool),
    }
    return sharding.put_batch(arrays, sharding.batch_sharding(mesh), row.batch_size)


class Contender(Protocol):
    """A compiled training step and its state."""

    def run(self, steps: int) -> None:
        """Runs so many steps and waits for them."""
        ...

    def bytes(self) -> int:
        """The most memory of the device that it has had."""
        ...


class VitJax:
    """Our step, as `vit_jax.train` runs it."""

    def __init__(self, row: Row) -> None:
        import jax

        from vit_jax.state import init_state

        ours = program(row, jax.devices()[:1])
        self.step = ours.compile_train_step()
        self.state: Any = init_state(ours.initialize, ours.abstract_state)
        self.batch = batch(row, ours.mesh)

    def run(self, steps: int) -> None:
        import jax

        scalars: Any = None
        for _ in range(steps):
            self.state, scalars = self.step(self.state, self.batch)
        jax.block_until_ready(scalars)

    def bytes(self) -> int:
        used = self.step.memory_analysis()
        return (
            used.argument_size_in_bytes
            + used.temp_size_in_bytes
            + used.output_size_in_bytes
            - used.alias_size_in_bytes
        )


class Timm:
    """The same by timm and PyTorch. On a CPU it is not compiled: that takes longer."""

    def __init__(self, row: Row) -> None:
        timm, torch = (importlib.import_module(name) for name in ("timm", "torch"))
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        model = timm.create_model(
            TIMM[row.variant],
            num_classes=1000,
            img_size=row.image_size,
            pos_drop_rate=row.dropout,
            proj_drop_rate=row.dropout,
            **({} if row.depth is None else {"depth": row.depth}),
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        sides = (row.image_size, row.image_size)
        images = torch.randn(row.batch_size, 3, *sides, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 1000, (row.batch_size,), device=self.device)
        self.forward = self.compiled(model) if self.device == "cuda" else model
        self.run(2)  # compiles
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def compiled(self, model: Any) -> Any:
        return self.torch.compile(model)

    def run(self, steps: int) -> None:
        torch = self.torch
        for _ in range(steps):
            with torch.autocast(self.device, torch.bfloat16):
                logits = self.forward(self.images)
                loss = torch.nn.functional.cross_entropy(logits, self.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def bytes(self) -> int:
        if self.device != "cuda":
            return 0
        return self.torch.cuda.max_memory_allocated()


class TimmByBlocks(Timm):
    """Each block compiled by itself: a minute less to compile, a little slower."""

    def compiled(self, model: Any) -> Any:
        for block in model.blocks:
            block.compile()
        return model


CONTENDERS: dict[str, Callable[[Row], Contender]] = {
    "vit_jax": VitJax,
    "timm": Timm,
    "timm by blocks": TimmByBlocks,
}

# --- taking turns


def serve(contender: str, row: Row) -> None:
    """Compiles, then runs so many steps as each line of stdin says and reports."""
    it = CONTENDERS[contender](row)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        it.run(int(line))
        seconds = time.perf_counter() - began
        print(json.dumps([seconds, it.bytes()]), flush=True)


class Worker:
    """A contender in a process of its own, which begins to compile at once."""

    def __init__(self, contender: str, row: Row, limit: float) -> None:
        self.contender = contender
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", contender, json.dumps(vars(row))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        timer = threading.Timer(max(limit, 0.0), self.process.kill)
        timer.daemon = True
        timer.start()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.contender} ended before it answered")
        return line

    def run(self, steps: int) -> tuple[float, int]:
        """Seconds for a step, and the bytes that the contender has had at most."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        seconds, used = json.loads(self.answer())
        return seconds / steps, used

    def end(self) -> None:
        self.process.communicate()


# Both frameworks share the card, and neither may take all of it.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}


def measure(row: Row, workers: Sequence[Worker], *, rounds: int, seconds: float) -> str:
    """A line for each contender: images a second, share of the peak, memory."""
    steps, times, used = {}, {}, {}
    for worker in workers:
        worker.run(3)
        steps[worker] = max(1, round(seconds / worker.run(3)[0]))
        times[worker] = []
    for _ in range(rounds):
        for worker in workers:
            taken, used[worker] = worker.run(steps[worker])
            times[worker].append(taken)
    lines = [f"{row}; medians of {rounds} rounds in turns"]
    medians = {worker: statistics.median(times[worker]) for worker in workers}
    for worker, step in medians.items():
        share = flops(row) / step / PEAKS.get(device_name(), float("nan"))
        lines.append(
            f"  {worker.contender:15} {row.batch_size / step:8.1f} images/s "
            f"{1e3 * step:8.2f} ms (from {1e3 * min(times[worker]):.2f} to "
            f"{1e3 * max(times[worker]):.2f}) {share:4.0%} of the peak "
            f"{used[worker] / 2**30:6.2f} GiB"
        )
    if len(medians) > 1:
        ours, *others = medians.values()
        lines.append(f"  vit_jax is {min(others) / ours:.3f} times as fast as timm")
    return "\n".join(lines)


@functools.cache
def device_name() -> str:
    """What the driver calls the card, without the maker; "" without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return names.stdout.splitlines()[0].removeprefix("NVIDIA ")


def flops(row: Row) -> int:
    """Of a step, as the field counts them."""
    from vit_jax import models
    from vit_jax.planning import flops

    model = models.create(variant=row.variant, depth=row.depth, num_classes=1000)
    sides = (row.image_size, row.image_size, 3)
    return flops.model_flops(model, sides, row.batch_size)


# --- results


def check_attention() -> None:
    """Relative errors of attention and its gradients against NumPy in float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.models import attention

    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    attend = attention.choose_attention(
        "auto", device.platform, device.device_kind, capability
    )
    print("attention: relative errors of the result and of dq, dk, dv, in bfloat16")
    for tokens, heads, width in ((197, 12, 64), (257, 16, 80), (50, 12, 64)):
        random = np.random.default_rng(tokens)
        shape = (2, tokens, heads, width)
        arrays = [jnp.asarray(random.normal(size=shape), "bfloat16") for _ in range(4)]
        arrays[0] *= 4
        truth = exact_attention(*[np.asarray(x, np.float64) for x in arrays])
        for name, run in (("plain", None), ("auto", attend)):
            out = attention_and_gradients(run, *arrays)
            errors = [
                np.linalg.norm(np.asarray(x, np.float64) - y) / np.linalg.norm(y)
                for x, y in zip(out, truth, strict=True)
            ]
            print(f"  {tokens} tokens, {heads} x {width}, {name:5}", end=" ")
            print(*[f"{error:.1e}" for error in errors], flush=True)
            assert max(errors) < 5e-3, (name, errors)


def attention_and_gradients(attend: Any, *arrays: Any) -> Any:
    """[out, dq, dk, dv] from q, k, v, do, padded as in the model."""
    import jax
    import jax.numpy as jnp

    from vit_jax.models.attention import dot_product_attention

    def run(*qkv: Any) -> Any:
        tokens, _, width = qkv[0].shape[1:]
        if attend is None:
            return dot_product_attention(*qkv)[0]
        added = attend.padding(tokens, width, qkv[0].dtype)
        if not added:
            return attend.run(*qkv)
        sides = ((0, 0), (0, added), (0, 0), (0, 0))
        # Not zeros, so that a key that should not count would be seen.
        padded = [jnp.pad(x, sides, constant_values=3) for x in qkv]
        return attend.run(*padded, tokens=tokens)[:, :tokens]

    @jax.jit
    def both(*arrays: Any) -> Any:
        out, pullback = jax.vjp(run, *arrays[:3])
        return [out, *pullback(arrays[3])]

    return both(*arrays)


def exact_attention(q: Any, k: Any, v: Any, do: Any) -> list[Any]:
    """Result and gradients from the formulas, in float64."""
    import numpy as np

    q, k, v, do = (x.transpose(0, 2, 1, 3) for x in (q, k, v, do))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(2, 3) * scale
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = do @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    found = [p @ v, ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ do]
    return [x.transpose(0, 2, 1, 3) for x in found]


def check_steps(row: Row) -> None:
    """Losses and gradient norms of five steps here and on the CPU, dropout included."""
    import jax
    import numpy as np

    from vit_jax.state import init_state

    print(f"five steps, {row}: loss and norm of the gradient")
    found = {}
    # bfloat16 products of a CPU are slow: its float32 is what both are compared with.
    for where, dtype in (("cpu", "float32"), ("", "float32"), ("", "bfloat16")):
        with jax.default_matmul_precision("highest"):
            devices = jax.devices(where or None)[:1]
            optim = {"name": "adamw", "learning_rate": 1e-3, "clip_norm": 1.0}
            ours = program(row, devices, optim=optim, dtype=dtype)
            step = ours.compile_train_step()
            state = init_state(ours.initialize, ours.abstract_state)
            images = batch(row, ours.mesh)
            rows = []
            for _ in range(5):
                state, scalars = step(state, images)
                rows.append([float(scalars[key]) for key in ("loss", "grad_norm")])
        found[where, dtype] = np.array(rows)
        name = f"{devices[0].platform}, {dtype}"
        print(f"  {name:15}", *[f"{x:.5f} {y:.5f}" for x, y in rows], flush=True)
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 3e-2)):
        np.testing.assert_allclose(
            found["", dtype], found["cpu", "float32"], rtol=tolerance, err_msg=dtype
        )


# --- all of it


def contenders(row: Row) -> list[str]:
    """Ours first. Whole models of more than 12 layers take timm minutes to compile."""
    if not importlib.util.find_spec("timm"):
        return ["vit_jax"]
    small = row.variant.startswith(("Ti/", "B/"))
    return ["vit_jax", "timm" if small else "timm by blocks"]


def compare(
    group: Sequence[Row], check: subprocess.Popen[bytes], limit: float, **options: Any
) -> None:
    """Compiles all contenders of some rows at once, and measures row by row."""
    started = [
        (row, [Worker(name, row, limit) for name in contenders(row)]) for row in group
    ]
    try:
        for _, workers in started:
            for worker in workers:
                worker.answer()  # that it is ready
        check.wait()
        for row, workers in started:
            print(measure(row, workers, **options), flush=True)
            for worker in workers:
                worker.end()
    except ChildProcessError as error:
        print(f"{', '.join(map(str, group))}: {error}", flush=True)
    finally:
        for _, workers in started:
            for worker in workers:
                worker.process.kill()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.8, help="of a round")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds in all")
    sizes = sorted({row.variant for group in GROUPS for row in group})
    parser.add_argument("--only", choices=sizes, help="rows of this model alone")
    parser.add_argument("--tiny", action="store_true", help="a test, on the CPU")
    parser.add_argument("--check", action="store_true", help="the results alone")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Row(**json.loads(args.serve[1])))
        return
    if args.check:
        check_attention()
        check_steps(TINY[0][0] if args.tiny else Row("B/16", 8, 0.1, depth=2))
        return
    began = time.monotonic()
    print(f"card: {device_name() or 'none'}", flush=True)
    command = [sys.executable, __file__, "--check", *["--tiny"] * args.tiny]
    environment = os.environ | ENVIRONMENT | {"JAX_PLATFORMS": "cuda,cpu"}
    if args.tiny:
        environment["JAX_PLATFORMS"] = "cpu"
    # While the first contenders compile; nothing is timed then.
    check = subprocess.Popen(command, env=environment)
    for group in TINY if args.tiny else GROUPS:
        if args.only not in (None, group[0].variant):
            continue
        left = args.limit - (time.monotonic() - began)
        compare(group, check, left, rounds=args.rounds, seconds=args.seconds)
    print(f"{time.monotonic() - began:.0f} s in all")
    if check.wait():
        raise SystemExit("the results are wrong: see above")


if __name__ == "__main__":
    main()
