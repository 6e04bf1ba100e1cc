"""One device and any mesh of eight give the same run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cli
from vit_jax import config, evaluators, sharding
from vit_jax.run import Run
from vit_jax.state import init_state

STEPS = 20
OVERRIDES = [
    ("total_steps", str(STEPS)),
    ("batch_size", "32"),
    ("mixup", "0.4"),
    ("optim.learning_rate", "1e-3"),
    # The gradient of the keys' bias is zero but for rounding, since softmax ignores a
    # shift; with a tiny eps Adam would blow that noise up to whole steps.
    ("optim.eps", "1e-6"),
    # Every kernel of this model is then large enough to be sharded by fsdp.
    ("model.width", "64"),
    ("model.mlp_dim", "128"),
]


def losses_and_params(
    mesh: tuple[int, int, int], devices: int, *others: tuple[str, str]
) -> tuple[Any, Any]:
    sizes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    of_mesh = [(f"mesh.{axis}", str(size)) for axis, size in sizes]
    overrides = [*OVERRIDES, *of_mesh, *others]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:devices])
        run = Run(**config.load(cli.EVERYTHING, overrides).to_dict())
    state = init_state(run.program.initialize, run.abstract_state)
    head = state.params["head"]["kernel"]
    random = 0.1 * np.random.default_rng(0).normal(size=head.shape).astype(np.float32)
    state.params["head"]["kernel"] = jax.device_put(random, head.sharding)
    step = run.program.compile_train_step()
    losses = []
    for batch in run.batches(0):
        state, scalars = step(state, batch)
        losses.append(float(scalars["loss"]))
    return np.array(losses), jax.device_get({"p": state.params, "e": state.ema_params})


@functools.cache
def on_one_device() -> tuple[Any, Any]:
    return losses_and_params((1, 1, 1), 1)


# With 4 devices along tensor the 10 classes are padded to 12.
@pytest.mark.parametrize(
    "mesh, zero1",
    [
        pytest.param((8, 1, 1), "false", marks=pytest.mark.slow),
        pytest.param((2, 4, 1), "false", marks=pytest.mark.slow),
        ((2, 2, 2), "false"),
        pytest.param((1, 2, 4), "false", marks=pytest.mark.slow),
        ((2, 4, 1), "true"),
    ],
)
def test_same_run_on_any_mesh(mesh: tuple[int, int, int], zero1: str) -> None:
    losses, params = losses_and_params(mesh, 8, ("mesh.zero1", zero1))
    expected_losses, expected_params = on_one_device()
    assert len(losses) == STEPS
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-4),
        params,
        expected_params,
    )


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(
            [("optim.name", "adafactor"), ("optim.eps", "none")],
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            [("model.scan", "true"), ("accumulation_steps", "1")],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_also_with_other_optimisers_and_scanned_layers(others: Any) -> None:
    fewer = [("total_steps", "6"), *others]
    losses, _ = losses_and_params((2, 2, 2), 8, *fewer)
    expected, _ = losses_and_params((1, 1, 1), 1, *fewer)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_state_is_sharded_as_the_rules_say() -> None:
    overrides = [*OVERRIDES, ("mesh.fsdp", "2"), ("mesh.tensor", "2")]
    run = Run(**config.load(cli.EVERYTHING, overrides).to_dict())
    state = init_state(run.program.initialize, run.abstract_state)
    block = state.params["Transformer"]["encoderblock_0"]
    attention = block["MultiHeadDotProductAttention_0"]
    shard = attention["query"]["kernel"].sharding.shard_shape
    assert shard((64, 4, 16)) == (32, 2, 16)
    kernel = block["MlpBlock_0"]["Dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (64, 32)
    moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
    specs = {
        sharding.path_name(path).split("Transformer/")[-1]: leaf.sharding.spec
        for path, leaf in moments
    }
    assert specs["encoderblock_0/MlpBlock_0/Dense_1/kernel"] == kernel.sharding.spec


def test_zero1_divides_the_optimiser_alone() -> None:
    overrides = [*OVERRIDES, ("mesh.fsdp", "4"), ("mesh.zero1", "true")]
    state = Run(**config.load(cli.EVERYTHING, overrides).to_dict()).abstract_state

    def divided(tree: Any) -> set[str]:
        return {
            sharding.path_name(path).split("Transformer/")[-1]
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if leaf.sharding.shard_shape(leaf.shape) != leaf.shape
        }

    assert divided(state.params) == divided(state.ema_params) == set()
    assert "encoderblock_0/MlpBlock_0/Dense_1/kernel" in divided(state.opt_state)


def test_residual_stream_is_constrained_in_the_traced_program() -> None:
    run = Run(**config.load(cli.EVERYTHING, OVERRIDES).to_dict())
    images = jnp.zeros((32, 28, 28, 3))
    params = run.abstract_state.params
    program = jax.make_jaxpr(
        lambda p, x: run.program.model.apply({"params": p}, x, train=False)
    )
    constraints = str(program(params, images)).count("sharding_constraint")
    assert constraints >= run.program.model.depth + 1


def test_rule_table_is_strict() -> None:
    with pytest.raises(LookupError, match="no sharding rule"):
        sharding.spec("params/unknown/thing", (8, 8), {"fsdp": 1, "tensor": 1})


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([("mesh.data", "3")], "must multiply to 8"),
        ([("mesh.data", "-1"), ("mesh.fsdp", "-1")], "one may be -1"),
        ([("batch_size", "20")], "2 accumulation steps; nearest that are: 16 or 32"),
        ([("batch_size", "4")], "nearest that are: 16"),
        ([("mesh.tensor", "8")], "tensor 8 does not divide model.num_heads 4"),
        ([("mesh.tensor", "8")], "that work: data 2 x fsdp 1 x tensor 4; data 1 x"),
        ([("evals.test.batch_size", "60")], "config.evals.test.batch_size is 60"),
        ([("evals.test.batch_size", "0")], "should be at least 1"),
        ([("evals.test.data.split", "train")], "has no effect"),
        ([("profile", "20,40")], "past the end: 30 steps"),
        ([("seed", "-1")], "should be 0 or more"),
        ([("ema", "1.5")], "between 0 and 1"),
        ([("mixup", "-1")], "0 .off. or more"),
        ([("cutmix", "-1")], "0 .off. or more"),
        ([("cutmix", "0"), ("mixup_switch_prob", "0.5")], "has no effect"),
        ([("model.num_classes", "9")], "the data has 10"),
    ],
)
def test_values_that_cannot_work(overrides: Any, message: str) -> None:
    with pytest.raises(config.UserError, match=message):
        Run(**config.load(cli.EVERYTHING, overrides).to_dict())


def test_an_evaluation_that_does_not_fit_is_refused_before_compiling() -> None:
    run = Run(
        **config.load(cli.EVERYTHING, [("evals.test.data.image_size", "57")]).to_dict()
    )
    with pytest.raises(config.UserError, match=r"config\.evals\.test: "):
        run.check_data()


def test_an_evaluation_has_data_of_its_own() -> None:
    overrides = [("evals.test.data.eval.resize", "32")]
    run = Run(**config.load(cli.EVERYTHING, overrides).to_dict())
    (evaluator,) = run.evaluators
    assert isinstance(evaluator, evaluators.Classification)
    assert evaluator.examples.dataset.eval.resize == 32
    assert run.dataset.eval.resize is None
