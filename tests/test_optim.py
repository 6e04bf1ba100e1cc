"""The optimisers against `optim_loops` and PyTorch, and what else their keys do."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optim_loops import (
    CLIP,
    DECAY,
    END,
    GRADS,
    PARAMS,
    PEAK,
    SHAPES,
    STEPS,
    WARMUP,
    Flat,
    adafactor,
    adamw,
    cosine,
    flattened,
    lion,
    nested,
    reference,
    sgd,
)
from vit_jax import optim
from vit_jax.errors import UserError


def trained(
    keys: dict, *, start: tuple[Flat, Any] | None = None, steps: slice = slice(None)
) -> tuple[Flat, Any]:
    """Parameters and optimiser state after some of the STEPS."""
    params = nested(start[0] if start else PARAMS)
    tx, _ = optim.make(params, STEPS, **keys)
    state = start[1] if start else tx.init(params)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in GRADS[steps]:
        params, state = update(params, state, nested(grads))
    return flattened(params), state


ALL_ON = {
    "learning_rate": PEAK,
    "schedule": "cosine",
    "warmup_steps": WARMUP,
    "end_learning_rate": END,
    "clip_norm": CLIP,
    "weight_decay": DECAY,
    "decay_multipliers": (("head/.*", 2.0), (".*/kernel", 1.0), ("cls", 0.5)),
    "lr_multipliers": (("embedding/.*", 0.0), ("Transformer/.*", 0.25)),
}
ALL_ON_DECAYS = {
    path: DECAY
    * (
        2.0
        if path.startswith("head/")
        else 1.0
        if path.endswith("/kernel")
        else 0.5
        if path == "cls"
        else 0.0
    )
    for path in SHAPES
}
ALL_ON_LR_SCALES = {
    path: {"embedding": 0.0, "Transformer": 0.25}.get(path.split("/")[0], 1.0)
    for path in SHAPES
}
KINDS = [
    ("adamw", {}, adamw),
    ("adamw", {"b1": 0.8, "b2": 0.95, "eps": 1e-3}, adamw),
    ("sgd", {}, sgd),
    ("sgd", {"momentum": 0.7, "nesterov": True}, sgd),
    ("sgd", {"momentum": 0.0}, sgd),
    ("lion", {}, lion),
    ("lion", {"b1": 0.7, "b2": 0.8}, lion),
    ("adafactor", {}, adafactor),
    ("adafactor", {"b1": 0.5, "b2": 0.7, "decay_rate": 0.5, "eps": 1e-4}, adafactor),
    (
        "adafactor",
        {"clipping_threshold": 0.5, "min_dim_size_to_factor": 45},
        adafactor,
    ),
]


@pytest.mark.parametrize(("name", "keys", "loop"), KINDS)
def test_twenty_steps_equal_the_loop(name: str, keys: dict, loop: Callable) -> None:
    actual, _ = trained({"name": name, **keys, **ALL_ON})
    expected = reference(loop(**keys), decays=ALL_ON_DECAYS, lr_scales=ALL_ON_LR_SCALES)
    for path in SHAPES:
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(
            actual[path], expected[path], rtol=1e-6, atol=1e-6 * scale, err_msg=path
        )


def test_the_gradients_are_on_both_sides_of_the_clip() -> None:
    norms = [math.sqrt(sum(np.sum(g**2) for g in grads.values())) for grads in GRADS]
    assert norms[0] < CLIP / 2
    assert norms[-1] > CLIP * 2


def test_by_default_kernels_decay_and_nothing_else() -> None:
    params = nested(PARAMS)
    tx, _ = optim.make(
        params, STEPS, learning_rate=0.1, schedule="constant", weight_decay=0.5
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    for path, update in flattened(updates).items():
        expected = -0.05 * PARAMS[path] * path.endswith("/kernel")
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=path)


def test_layer_decay_in_loops_and_scans() -> None:
    """Of plain SGD: each layer moves by its power of the decay."""
    names = ("embedding/kernel", "head/bias", "Transformer/encoder_norm/scale")
    flat = {name: np.ones(3, np.float32) for name in names}
    stacked = {
        **flat,
        "Transformer/encoderblock/MlpBlock_0/kernel": np.ones((3, 2), "f4"),
    }
    layers = {
        f"Transformer/encoderblock_{i}/MlpBlock_0/kernel": np.ones(2, "f4")
        for i in range(3)
    }
    keys: Any = {
        "name": "sgd",
        "momentum": 0.0,
        "learning_rate": 1.0,
        "layer_decay": 0.5,
    }

    def moves(tree: Flat) -> dict[str, Any]:
        params = jax.tree.map(jnp.asarray, nested(tree))
        tx, _ = optim.make(
            params, 10, schedule="constant", lr_multipliers=(("head/.*", 3.0),), **keys
        )
        updates, _ = tx.update(params, tx.init(params), params)
        return {
            optim._name(p): np.asarray(-u)
            for p, u in jax.tree_util.tree_leaves_with_path(updates)
        }

    loop, scan = moves({**flat, **layers}), moves(stacked)
    for found in (loop, scan):
        np.testing.assert_array_equal(found["embedding/kernel"], np.full(3, 0.5**4))
        np.testing.assert_array_equal(
            found["Transformer/encoder_norm/scale"], np.ones(3)
        )
        np.testing.assert_array_equal(found["head/bias"], np.full(3, 3.0))
    for i, name in enumerate(layers):
        np.testing.assert_array_equal(loop[name], np.full(2, 0.5 ** (3 - i)))
    np.testing.assert_array_equal(
        scan["Transformer/encoderblock/MlpBlock_0/kernel"],
        np.stack([loop[n] for n in layers]),
    )


def test_all_but_a_pattern_can_be_frozen() -> None:
    keys = {"name": "adamw", **ALL_ON, "lr_multipliers": ()}
    probe, state = trained({**keys, "train_only": "head/.*"})
    same, _ = trained({**keys, "lr_multipliers": (("(?!head/).*", 0.0),)})
    for path, array in PARAMS.items():
        np.testing.assert_array_equal(probe[path], same[path])
        assert np.array_equal(probe[path], array) != path.startswith("head/")
    assert max(x.size for x in jax.tree.leaves(state)) <= PARAMS["head/kernel"].size


def test_frozen_parameters_stay_and_have_no_moments() -> None:
    after, state = trained({**ALL_ON, "name": "adamw"})
    for path in SHAPES:
        same = np.array_equal(after[path], PARAMS[path])
        assert same == path.startswith("embedding/"), path
    names = state_paths(state)
    assert any(name.endswith("mu/head/kernel") for name in names)
    assert not any("embedding/" in name for name in names)


def state_paths(state: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    keystr = jax.tree_util.keystr
    return [keystr(path, simple=True, separator="/") for path, _ in leaves]


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_state_paths_end_in_the_path_of_the_parameter(name: str) -> None:
    _, state = trained(
        {**ALL_ON, "name": name, "lr_multipliers": ()}, steps=slice(0, 1)
    )
    for path in state_paths(state):
        is_moment = any(path.endswith(f"/{parameter}") for parameter in SHAPES)
        assert is_moment or path.endswith("/count"), path


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_state_is_all_there_is(name: str) -> None:
    """Ten steps, the state written to bytes, ten more by a new optimiser."""
    keys = {**ALL_ON, "name": name}
    params, state = trained(keys, steps=slice(0, 10))
    leaves, structure = jax.tree.flatten(state)
    written = [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in leaves]
    read = [jnp.asarray(np.frombuffer(b, t).reshape(n)) for n, t, b in written]

    start = (params, jax.tree.unflatten(structure, read))
    resumed, _ = trained(keys, start=start, steps=slice(10, STEPS))
    whole, _ = trained(keys)
    for path in SHAPES:
        np.testing.assert_array_equal(resumed[path], whole[path], err_msg=path)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_first_moments_can_be_bfloat16(name: str) -> None:
    keys = {**ALL_ON, "name": name, "lr_multipliers": ()}
    exact, _ = trained(keys)
    after, state = trained({**keys, "moment_dtype": "bfloat16"})
    first = ("mu/", "trace/", "ema/")
    for path, leaf in zip(state_paths(state), jax.tree.leaves(state), strict=True):
        if not path.endswith("count"):
            is_first = any(f"/{kind}" in f"/{path}" for kind in first)
            assert leaf.dtype == (jnp.bfloat16 if is_first else jnp.float32), path
    start, exact, after = (
        np.concatenate([flat[path].ravel() for path in SHAPES])
        for flat in (PARAMS, exact, after)
    )
    # Not zero: the dtype is used. Lion takes the sign of what is rounded.
    error = np.linalg.norm(after - exact) / np.linalg.norm(exact - start)
    assert 0 < error < (0.1 if name == "lion" else 0.01)


def test_shapes_are_enough_to_make_it() -> None:
    params = nested(PARAMS)
    tx, _ = optim.make(jax.eval_shape(lambda: params), STEPS, **ALL_ON)
    abstract = jax.eval_shape(tx.init, params)
    concrete = tx.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)


def test_returns_the_schedule_that_it_follows() -> None:
    _, schedule = optim.make(nested(PARAMS), STEPS, **ALL_ON)
    actual = [float(schedule(step)) for step in range(STEPS + 1)]
    expected = [cosine(step) for step in range(STEPS + 1)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "adam"}, "adamw, sgd, adafactor, lion"),
        ({"name": "adamw", "momentum": 0.9}, "momentum: not read .* b1, b2, eps"),
        ({"name": "adamw", "nesterov": False}, "nesterov: not read"),
        ({"name": "sgd", "b1": 0.9, "eps": 1e-8}, "b1, eps: not read"),
        ({"name": "lion", "eps": 1e-8}, "eps: not read"),
        ({"name": "adafactor", "momentum": 0.9}, "momentum: not read"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "keeps no moments"),
        (
            {"name": "sgd", "momentum": 0.0, "moment_dtype": "bfloat16"},
            "keeps no moments",
        ),
        (
            {"name": "adafactor", "b1": 0.0, "moment_dtype": "bfloat16"},
            "keeps no momentum",
        ),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"decay_multipliers": ((".*", 1.0),)}, "weight_decay is 0"),
        ({"lr_multipliers": ((".*", 0.0),)}, "freezes every parameter"),
        ({"train_only": "haed/.*"}, 'train_only: "haed/.*" matches no parameter'),
        ({"lr_multipliers": ((".*", -1.0),)}, "must be >= 0"),
        ({"layer_decay": 1.5}, "at most 1"),
        ({"lr_multipliers": (("(", 1.0),)}, "not a regular expression"),
        (
            {"lr_multipliers": (("head/kernl", 1.0),)},
            '"head/kernl" matches no parameter.* such as: head/kernel',
        ),
        (
            {"lr_multipliers": (("head", 1.0),)},
            "must match a whole path, such as: head/",
        ),
        (
            {"lr_multipliers": ((".*", 0.5), ("head/.*", 1.0))},
            '"head/.*" matches is matched by patterns before it',
        ),
        (
            {"weight_decay": 0.1, "decay_multipliers": ((".*/kernels", 1.0),)},
            'decay_multipliers: ".*/kernels" matches no parameter',
        ),
        ({"schedule": "linear", "timescale": 10}, "timescale=10 is read only by"),
        ({"warmup_steps": 30}, "warmup_steps=30, but total_steps=20"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optim.make(nested(PARAMS), STEPS, **keys)


@pytest.mark.crosscheck
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("adamw", {}),
        ("adamw", {"b1": 0.8, "b2": 0.95, "eps": 1e-3}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.7, "nesterov": True}),
    ],
)
def test_twenty_steps_equal_torch(name: str, keys: dict) -> None:
    torch = pytest.importorskip("torch")
    decay = DECAY if name == "adamw" else 0.0  # torch's SGD has another weight decay
    params = {
        path: torch.nn.Parameter(torch.from_numpy(p.copy()))
        for path, p in PARAMS.items()
    }
    groups = [
        {
            "params": [p],
            "scale": ALL_ON_LR_SCALES[path],
            "weight_decay": decay * path.endswith("/kernel"),
        }
        for path, p in params.items()
        if ALL_ON_LR_SCALES[path]
    ]
    if name == "adamw":
        betas = (keys.get("b1", 0.9), keys.get("b2", 0.999))
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=keys.get("eps", 1e-8))
    else:
        optimizer = torch.optim.SGD(
            groups,
            lr=1.0,
            momentum=keys.get("momentum", 0.9),
            nesterov=keys.get("nesterov", False),
        )
    in_groups = [group["params"][0] for group in optimizer.param_groups]
    for step, grads in enumerate(GRADS):
        for path, p in params.items():
            p.grad = torch.from_numpy(grads[path].copy())
        torch.nn.utils.clip_grad_norm_(in_groups, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step) * group["scale"]
        optimizer.step()

    overrides = {"weight_decay": decay, "decay_multipliers": None}
    actual, _ = trained({"name": name, **keys, **ALL_ON, **overrides})
    for path, p in params.items():
        np.testing.assert_allclose(
            actual[path], p.detach().numpy(), rtol=2e-6, atol=2e-6, err_msg=path
        )
