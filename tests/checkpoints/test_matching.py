"""After its optimiser's settings changed a run goes on, where no state is missing."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import SingleDeviceSharding

from vit_jax import optim
from vit_jax.checkpoints import Checkpoints
from vit_jax.errors import UserError
from vit_jax.state import TrainState

SHAPES = {
    "embedding": {"kernel": (2, 3), "bias": (3,)},
    "Transformer": {"encoderblock_0": {"kernel": (3, 3)}},
    "head": {"kernel": (3, 2), "bias": (2,)},
}
STREAM = {"seed": 0}


def state(seed: int, *, ema: bool = False, **config: Any) -> TrainState:
    """The state of a run with this optimiser, every array of it random."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        array = rng.normal(size=leaf.shape, scale=1000)
        return jnp.asarray(array.astype(leaf.dtype))

    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    tx, _ = optim.make(shapes, 100, **config)
    params = jax.tree.map(draw, shapes)
    return TrainState(
        step=jnp.asarray(7, jnp.int32),
        params=params,
        opt_state=jax.tree.map(draw, jax.eval_shape(tx.init, shapes)),
        ema_params=jax.tree.map(draw, shapes) if ema else None,
        bad_examples=jnp.asarray(2, jnp.int32),
    )


def abstract(of: TrainState) -> TrainState:
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), of
    )


def opened(directory: Path) -> Checkpoints:
    return Checkpoints(epath.Path(directory), {"a": 1}, STREAM)


def go_on(directory: Path, was: TrainState, now: TrainState) -> tuple[Any, list[str]]:
    """Saves one state and restores it as a run of the other would."""
    with opened(directory) as saved:
        saved.position.step = 7
        saved.save(was)
    with opened(directory) as saved:
        return saved.restore(abstract(now)), saved.notes


def moments(of: TrainState) -> dict[str, np.ndarray]:
    """The optimiser's arrays by the end of their path, which no wrapper changes."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(of.opt_state):
        words = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        start = next(i for i, w in enumerate(words) if w in ("adamw", "schedule"))
        found["/".join(words[start:])] = np.asarray(leaf)
    return found


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


PLAIN: dict[str, Any] = {}
CHANGES: list[dict[str, Any]] = [
    {"clip_norm": 1.0},
    {"weight_decay": 0.1},
    {"layer_decay": 0.7},
    {"lr_multipliers": (("head/.*", 0.1),)},
    {"clip_norm": 1.0, "weight_decay": 0.1, "layer_decay": 0.5, "b2": 0.95},
]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "+".join(change))
def test_settings_without_state_may_change(
    change: dict[str, Any], back: bool, tmp_path: Path
) -> None:
    was, now = (change, PLAIN) if back else (PLAIN, change)
    before, after = state(0, **was), state(1, **now)
    restored, notes = go_on(tmp_path, before, after)
    assert notes == []
    assert jax.tree.structure(restored) == jax.tree.structure(after)
    assert_equal(restored.params, before.params)
    found, expected = moments(restored), moments(before)
    assert found.keys() == expected.keys() and len(found) == 2 + 2 * 5
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert int(restored.step) == 7 and int(restored.bad_examples) == 2


def test_freezing_later_leaves_out_moments(tmp_path: Path) -> None:
    before = state(0, clip_norm=1.0)
    frozen = state(1, train_only="head/.*")
    restored, notes = go_on(tmp_path, before, frozen)
    assert notes == [
        "6 arrays of the optimiser's state that this config does not use: left out "
        "(adamw/mu, adamw/nu)"
    ]
    expected = moments(before)
    for name, array in moments(restored).items():
        assert array.tobytes() == expected[name].tobytes(), name
    assert len(moments(restored)) == 2 + 2 * 2


@pytest.mark.parametrize(
    "was, now",
    [
        ({"train_only": "head/.*"}, {}),
        ({"name": "sgd", "momentum": 0.0}, {}),
        ({}, {"name": "lion"}),
        ({}, {"moment_dtype": "bfloat16"}),
    ],
)
def test_an_optimiser_that_lacks_state_is_refused(
    was: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="of another optimiser:") as error:
        go_on(tmp_path, state(0, **was), state(1, **now))
    assert f"--config.init_from={tmp_path}/7" in str(error.value)
    assert "move" not in str(error.value)


def test_another_model_is_named_as_such(tmp_path: Path) -> None:
    other = state(1)
    other.params["head"]["kernel"] = jnp.zeros((3, 5))
    with pytest.raises(UserError, match="of another model:") as error:
        go_on(tmp_path, state(0), other)
    assert "head/kernel: (3, 2) float32 in the checkpoint, (3, 5)" in str(error.value)


def test_an_average_begins_and_ends(tmp_path: Path) -> None:
    before = state(0)
    restored, notes = go_on(tmp_path / "begins", before, state(1, ema=True))
    assert notes == ["the average of the parameters (config.ema) starts at this step"]
    assert_equal(restored.ema_params, before.params)
    # A step donates both: they may not share memory.
    pairs = zip(
        jax.tree.leaves(restored.ema_params),
        jax.tree.leaves(restored.params),
        strict=True,
    )
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)

    averaged = state(2, ema=True)
    restored, notes = go_on(tmp_path / "goes on", averaged, state(3, ema=True))
    assert notes == []
    assert_equal(restored.ema_params, averaged.ema_params)

    restored, notes = go_on(tmp_path / "ends", averaged, state(3))
    assert notes == ["the average of the parameters ends here: config.ema is none"]
    assert restored.ema_params is None
    assert_equal(restored.params, averaged.params)


def test_all_broken_is_no_reason_to_move_anything(tmp_path: Path) -> None:
    with opened(tmp_path) as saved:
        saved.position.step = 7
        saved.save(state(0))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with opened(tmp_path) as saved, pytest.raises(UserError) as error:
        saved.restore(abstract(state(0)))
    assert "can be read" in str(error.value) and "move" not in str(error.value)
    assert "another --workdir" in str(error.value)
