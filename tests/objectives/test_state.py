"""An objective may carry arrays from step to step: they are trained on, saved, resumed.

The one of these tests is learned without labels: the model agrees with an average of
its own parameters (the teacher), whose outputs are centred.

Axes: b batch, k outputs.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from vit_jax import sharding, steps
from vit_jax.checkpoints import Checkpoints
from vit_jax.errors import UserError
from vit_jax.objectives import Batch, Given, Losses, Prepared, Stateless
from vit_jax.state import TrainState, abstract_state, init_state, make_initializer

BATCH, PIXELS, OUTPUTS = 8, 12, 5
DECAY, CENTRE_DECAY, RATE = 0.8, 0.7, 0.3


class Linear:
    """As much of a Linen module as `make_initializer` uses."""

    def init(self, key: jax.Array, images: jax.Array) -> Any:
        kernel = jax.random.normal(key, (PIXELS, OUTPUTS))
        return {"params": {"head": {"kernel": kernel}}}


def outputs(params: Any, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ params["head"]["kernel"]


class WithItsAverage(Stateless):
    """See above."""

    def init(self, params: Any) -> Any:
        teacher = jax.tree.map(jnp.copy, params)
        return {"teacher": teacher, "centre": jnp.zeros(OUTPUTS)}

    def prepare(self, batch: Batch, key: jax.Array) -> Prepared:
        images = batch["image"].astype(jnp.float32) / 255
        mask = batch["mask"]
        return Prepared({"image": images, "mask": mask}, jnp.sum(mask))

    def losses(self, params: Any, batch: Batch, key: jax.Array, given: Given) -> Losses:
        said = jax.lax.stop_gradient(outputs(given.state["teacher"], batch["image"]))
        found = outputs(params, batch["image"])
        loss = jnp.sum((found - (said - given.state["centre"])) ** 2, axis=-1)
        agree = jnp.argmax(found, -1) == jnp.argmax(said, -1)
        return Losses(loss, {"said": said, "agree": agree})

    def update(self, state: Any, params: Any, sums: Any, step: jax.Array) -> Any:
        move = optax.incremental_update
        mean = sums["said"] / BATCH
        return {
            "teacher": move(params, state["teacher"], 1 - DECAY),
            "centre": move(mean, state["centre"], 1 - CENTRE_DECAY),
        }


def make_batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    mask = np.ones(BATCH, bool)
    mask[step % BATCH] = False
    return {
        "image": random.integers(0, 256, (BATCH, 2, 2, 3), dtype=np.uint8),
        "mask": mask,
    }


def made(parts: int = 1, sizes: tuple[int, int, int] = (1, 1, 1)) -> tuple[Any, Any]:
    """The compiled step and the state at step 0, on a mesh."""
    axes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(
        sizes,
        tuple(axes),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=devices,
    )
    objective, tx = WithItsAverage(), optax.sgd(RATE)
    step = steps.make_train_step(
        objective,
        tx,
        lambda s: RATE + 0 * s,
        seed=0,
        accumulation_steps=parts,
        ema=None,
    )
    initialize = make_initializer(
        Linear(), tx, (2, 2, 3), ema=False, seed=0, of_objective=objective.init
    )
    abstract = abstract_state(initialize, mesh, zero1=False)
    return jax.jit(step), init_state(initialize, abstract)


def train(step: Any, state: TrainState, first: int, last: int) -> TrainState:
    for number in range(first, last):
        state, scalars = step(state, make_batch(number))
        assert "said" not in scalars and 0 <= float(scalars["agree"]) <= 1
    return state


def reference(kernel: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Kernel, teacher and centre after so many steps, in NumPy and float64."""
    teacher, centre = kernel.copy(), np.zeros(OUTPUTS)
    for number in range(count):
        batch = make_batch(number)
        x = (batch["image"].reshape(BATCH, -1) / 255)[batch["mask"]]
        said = x @ teacher
        gradient = 2 * x.T @ (x @ kernel - said + centre) / len(x)
        kernel = kernel - RATE * gradient
        teacher = DECAY * teacher + (1 - DECAY) * kernel
        centre = CENTRE_DECAY * centre + (1 - CENTRE_DECAY) * said.sum(0) / BATCH
    return kernel, teacher, centre


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_it_is_that_of_the_equations(parts: int, sizes: tuple[int, int, int]) -> None:
    step, state = made(parts, sizes)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    state = train(step, state, 0, 4)
    found = (
        state.params["head"]["kernel"],
        state.objective["teacher"]["head"]["kernel"],
        state.objective["centre"],
    )
    for ours, theirs in zip(found, reference(kernel, 4), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def opened(directory: Path) -> Checkpoints:
    return Checkpoints(epath.Path(directory), {"a": 1}, {"seed": 0})


def shapes_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_it_is_saved_and_resumed_to_the_bit(tmp_path: Path) -> None:
    step, begin = made()
    whole = train(step, begin, 0, 6)
    with opened(tmp_path) as saved:
        saved.position.step = 3
        saved.save(train(step, begin, 0, 3))
    with opened(tmp_path) as saved:
        resumed = saved.restore(shapes_of(begin))
        assert resumed is not None and saved.position.step == 3
        assert saved.notes == []
    for a, b in zip(
        jax.tree.leaves(train(step, resumed, 3, 6)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_another_objective_is_refused_and_one_without_state_leaves_it_out(
    tmp_path: Path,
) -> None:
    _, state = made()
    plain = state.replace(objective=None)  # type: ignore[attr-defined]
    for name, value in (("with", state), ("without", plain)):
        with opened(tmp_path / name) as saved:
            saved.position.step = 1
            saved.save(value.replace(step=jnp.ones((), jnp.int32)))
    with (
        opened(tmp_path / "without") as saved,
        pytest.raises(UserError, match=r"another objective:\n.*objective/centre"),
    ):
        saved.restore(shapes_of(state))
    with opened(tmp_path / "with") as saved:
        assert saved.restore(shapes_of(plain)) is not None
        assert saved.notes == [
            "2 arrays of the objective's state that this config does not use: left out "
            "(centre, teacher/head)"
        ]


def test_a_copy_of_the_parameters_is_laid_out_as_they_are() -> None:
    sizes = {"data": 1, "fsdp": 2, "tensor": 2}
    path, shape = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", (64, 256)
    for start in ("params", "objective/teacher"):
        assert tuple(sharding.spec(f"{start}/{path}", shape, sizes)) == (
            "fsdp",
            "tensor",
        )
    assert tuple(sharding.spec("objective/centre", (256,), sizes)) == ()
