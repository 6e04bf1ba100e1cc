"""The plan for this machine: by running a few steps, on data of the right shape."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import devices, host_memory, sharding, state
from vit_jax.planning import flops, teachers
from vit_jax.planning.planner import Shape
from vit_jax.program import Program

WARM_UP, STEPS = 2, 8
NOT_MODELLED = (
    "Measured with all-random images that lie on the device already: reading data, "
    "evaluations and checkpoints come on top.",
    "The share of the machine's speed is against a large matrix product in the model's "
    "dtype, timed here; it is no peak that a vendor states.",
)


def measure(
    config: dict[str, Any], shape: Shape, *, price: float | None
) -> dict[str, Any]:
    """Runs the config's training step on this machine's devices.

    Raises:
      UserError: if the config cannot work on them.
    """
    with devices.enough_memory(devices.advice_on_training(config)):
        return _measured(config, shape, price)


def _measured(
    config: dict[str, Any], shape: Shape, price: float | None
) -> dict[str, Any]:
    host_memory.keep_freed_memory()
    found = devices.find()
    teacher = shape.teacher and shape.teacher.build(shape.data.image_shape)
    program = Program(shape.data, found, teacher, **shape.program(config))
    traced = program.trace_train_step()
    compiled = program.compile_train_step()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    current = state.init_state(program.initialize, program.abstract_state)
    batch = random_batch(program, shape.num_classes)
    constants = []
    if teacher is not None:
        whole = teachers.zeros(teacher.arrays)
        constants.append(sharding.put_everywhere(program.mesh, whole))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        current, scalars = compiled(current, batch, *constants)
        jax.block_until_ready((current, scalars))
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[WARM_UP:])
    model_flops = flops.model_flops(
        program.model, shape.data.image_shape, program.batch_size
    )
    rate = matmul_rate(program.model.dtype) * len(found)
    hours = step * shape.total_steps / 3600
    return {
        "topology": "local",
        "devices": f"{len(found)} x {found[0].device_kind}",
        "layout": str(program.layout),
        "batch_size": program.batch_size,
        "total_steps": shape.total_steps,
        "bytes_per_device": {
            "arguments": analysis.argument_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
            "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        },
        "flops_per_step": {
            "model": model_flops,
            "hardware": flops.traced_flops(traced.jaxpr.jaxpr),
        },
        "step_ms": 1e3 * step,
        "images_per_second": program.batch_size / step,
        "share_of_matmul_rate": model_flops / step / rate,
        "days": hours / 24,
        "price": None if price is None else hours * len(found) * price,
        "not_modelled": list(NOT_MODELLED),
    }


def random_batch(program: Program, num_classes: int) -> dict[str, jax.Array]:
    """Random images and labels, laid out as training lays them out."""
    random = np.random.default_rng(0)
    images = program.abstract_batch["image"].shape
    values = {
        "image": random.integers(0, 256, images, np.uint8),
        "label": random.integers(0, num_classes, images[0], np.int32),
        "mask": np.ones(images[0], bool),
    }
    return {
        name: jax.device_put(value, program.abstract_batch[name].sharding)
        for name, value in values.items()
    }


def matmul_rate(dtype: str, size: int = 2048) -> float:
    """FLOP/s of one device for square matrices, the best of some."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
