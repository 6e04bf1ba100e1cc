"""The parts of a plan that need no compiler, against hand counts and closed forms."""

import json
import shlex
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import vit_jax.plan
from tests import cli
from vit_jax import compiler, config, models
from vit_jax.errors import UserError
from vit_jax.planning import (
    data_shapes,
    figures,
    flops,
    planner,
    search,
    topologies,
)
from vit_jax.run import Run

# --- FLOPs

# B/16 at 224 px, written out: 196 patches of 16 x 16 x 3, 197 tokens, 12 layers.
B16_MACS = (
    196 * 768 * 768  # patch embedding
    + 12 * 3 * 197 * 768 * 768  # q, k, v
    + 12 * 12 * 197 * 197 * 64  # scores, 12 heads of 64
    + 12 * 12 * 197 * 197 * 64  # weighted values
    + 12 * 197 * 768 * 768  # out
    + 12 * 2 * 197 * 768 * 3072  # MLP
    + 768 * 1000  # head
)


def test_formula_of_b16() -> None:
    assert pytest.approx(17.58e9, rel=0.01) == B16_MACS  # as published for 224 px
    model = models.create(variant="B/16", num_classes=1000)
    assert flops.forward_macs(model, (224, 224, 3)) == B16_MACS


@pytest.mark.parametrize("scan", [False, True])
def test_traced_flops_agree_with_the_formula(scan: bool) -> None:
    model = models.create(
        variant="B/16",
        num_classes=1000,
        scan=scan,
        remat_policy="everything_saveable" if scan else "none",
    )
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.sum(jnp.asarray(model.apply(params, images)) ** 2)

    forward = jax.make_jaxpr(model.apply)(params, images)
    assert flops.traced_flops(forward.jaxpr) == 2 * 2 * B16_MACS
    step = jax.make_jaxpr(jax.grad(loss))(params, images)
    # 6 multiply-adds, but for the gradient of the images, which nobody needs.
    assert flops.traced_flops(step.jaxpr) == pytest.approx(6 * 2 * B16_MACS, rel=0.01)


def test_traced_flops_show_what_is_computed_twice() -> None:
    def count(**keys: Any) -> int:
        model = models.create(
            patch_size=7, width=32, depth=2, mlp_dim=64, num_heads=2, **keys
        )
        images = jnp.zeros((1, 28, 28, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        grad = jax.grad(lambda p: jnp.sum(jnp.asarray(model.apply(p, images))))
        return flops.traced_flops(jax.make_jaxpr(grad)(params).jaxpr)

    once = count(scan=True, remat_policy="everything_saveable")
    twice = count(scan=True, remat_policy="nothing_saveable")
    tokens, width, mlp = 17, 32, 64
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    # All of a layer again but its last product, which only the output needs.
    again = 2 * 2 * (layer - tokens * width * mlp)
    assert twice - once == again


# --- topologies


def test_every_topology_has_as_many_devices_as_it_says() -> None:
    assert topologies.parse("v5e:16x16", 4).num_devices == 1024
    assert topologies.parse("v3:32x32").num_devices == 2048
    assert topologies.parse("v4:8x8x16").num_chips == 1024


@pytest.mark.parametrize(
    "name, slices, message",
    [
        ("v5e:3x5", 1, "nearest: v5e:4x4, v5e:2x4, v5e:4x8"),
        ("v5e:32x32", 1, "more by --slices"),
        ("v6:4x4", 1, "v6e:4x4"),
        ("v5e", 1, "VERSION:SHAPE"),
        ("v4:4x4", 1, "nearest: v4:2x2x4"),
        ("v5e:16x16", 5, "should be 1 to 4"),
        ("v5e:4x4", 0, "should be 1 to 64"),
    ],
)
def test_a_topology_that_is_none(name: str, slices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        topologies.parse(name, slices)


def test_wraparound() -> None:
    assert topologies.parse("v5e:8x16").wraps(1)
    assert not topologies.parse("v5e:8x16").wraps(0)
    assert topologies.parse("v5p:4x4x8").wraps(0)
    assert not topologies.parse("v5p:2x4x4").wraps(1)


# --- plans


def compiled(total: int, refused: str | None = None) -> dict[str, Any]:
    return {
        "program": {"model_flops": 197e12 * 4, "hardware_flops": 197e12 * 4},
        "memory": {"total": total},
        "collectives": [{"seconds": 0.5}],
        "time": {"parts": {"MLP": 1500.0, "attention": 500.0}},
        "refused": refused,
    }


def test_costs_by_hand() -> None:
    """Four v5e chips that need one second at their peak take two, or 2.5 with links."""
    run = figures.Run(batch_size=100, total_steps=3600, price=2.0)
    both = figures.estimate(topologies.parse("v5e:2x2"), run, compiled(1))
    assert both is not None
    assert both["hidden"] == {
        "step_ms": 2000.0,
        "mfu": 0.5,
        "images_per_second": 50.0,
        "days": 2 / 24,
        "chip_hours": 8.0,
        "price": 16.0,
    }
    assert both["exposed"]["step_ms"] == 2500.0


def test_search_ranks_what_fits() -> None:
    """A compiler that likes `fsdp` and dislikes loops, and refuses `tensor`."""
    asked: list[bool] = []

    def compile(changes: search.Changes, fast: bool) -> dict[str, Any]:
        asked.append(fast)
        if changes["mesh.tensor"] > 1:
            raise UserError("tensor 2 does not divide model.num_heads 3")
        size = 100 // changes["mesh.fsdp"] + 50 * (not changes["model.scan"])
        result = compiled(size)
        written = changes.get("model.write_norms", False)
        result["time"] = {"parts": {"MLP": float(200 - size - 60 * written)}}
        return result

    lines: list[str] = []
    options: dict[str, Any] = {
        "devices": 16,
        "available": 90,
        "peak_flops": 1e15,
        "say": lines.append,
    }
    fast = search.search(compile, fast=True, **options)
    assert all(asked)
    assert fast[0].changes["mesh.fsdp"] == 16
    assert fast[0].changes["model.scan"]
    assert max(one.total for one in fast) <= 90
    assert any("does not divide" in line for line in lines)
    full = search.search(compile, fast=False, **options)
    assert len(full) == asked.count(False) == search.MOST_FULL + 1
    best, second = (one.changes for one in full[:2])
    assert best == {**second, "model.write_norms": True}

    def greedy(changes: search.Changes, fast: bool) -> dict[str, Any]:
        """Where norms that are written need more memory than there is."""
        result = compile(changes, fast)
        result["memory"]["total"] += 100 * ("model.write_norms" in changes)
        return result

    found = search.search(greedy, fast=False, **options)
    assert [one.changes for one in found] == [one.changes for one in full[1:]]
    times = [one.milliseconds for one in full]
    assert times == sorted(times, key=lambda ms: ms or 0.0)


def test_what_would_make_it_fit() -> None:
    def compile(changes: search.Changes, _: bool) -> dict[str, Any]:
        return compiled(
            100 // changes["accumulation_steps"] if len(changes) > 5 else 99
        )

    lines = search.remedies(compile, devices=16, available=30, say=lambda _: None)
    assert lines[-1].endswith("--config.accumulation_steps=4: 0.00 GiB, fits")
    never = search.remedies(compile, devices=16, available=1, say=lambda _: None)
    assert "lower the batch size" in never[-1]


def test_changes_are_flags_that_the_config_takes() -> None:
    for changes in search.candidates(16):
        flags = shlex.split(search.describe(changes))
        split = (flag.removeprefix("--config.").partition("=") for flag in flags)
        pairs = [(key, text) for key, _, text in split]
        loaded = config.load("configs/imagenet1k.py", pairs).to_dict()
        plain = config.load("configs/imagenet1k.py", []).to_dict()
        assert loaded == search.apply(plain, changes)


# --- the shape of data that is not here


def test_known_datasets() -> None:
    loaded = config.load("configs/imagenet21k.py", []).to_dict()
    shape = data_shapes.of_config(loaded["data"])
    assert shape.num_examples == 14_197_122 - 51_200
    assert shape.num_classes == 21_843
    assert shape.image_shape == (224, 224, 3)


def test_the_embedded_dataset_is_as_the_table_says() -> None:
    loaded = config.load("configs/quickstart.py", []).to_dict()
    shape = data_shapes.of_config(loaded["data"])
    dataset = Run(**loaded).dataset
    assert shape.num_examples == dataset.num_examples
    assert shape.num_classes == dataset.num_classes
    assert shape.image_shape == dataset.image_shape
    assert (shape.mean, shape.std) == (dataset.mean, dataset.std)


@pytest.mark.parametrize(
    "section, examples, classes",
    [
        ({"name": "vtab/svhn", "split": "train800val200"}, 1000, 10),
        ({"name": "vtab/eurosat", "split": "test[:10%]"}, 540, 10),
        ({"name": "imagenet_v2/topimages", "split": "test"}, 10_000, 1000),
        ({"name": "jft", "split": "train"}, None, None),
        (
            {
                "name": "mixture",
                "split": "train",
                "mixture": {
                    "a": {"name": "cifar10", "split": None},
                    "b": {"name": "mnist", "split": "test"},
                },
            },
            60_000,
            10,
        ),
    ],
)
def test_shapes_by_the_catalog(
    section: dict[str, Any], examples: int | None, classes: int | None
) -> None:
    plain = config.load("configs/quickstart.py", []).to_dict()["data"]
    shape = data_shapes.of_config({**plain, **section})
    assert (shape.num_examples, shape.num_classes) == (examples, classes)


# --- what the compiler is told, and the command line


def test_compiler_options_are_those_of_the_platform() -> None:
    def options(platform: str) -> set[str]:
        return set(compiler.options(SimpleNamespace(platform=platform)))

    assert compiler.options(jax.devices()[0]) == {}
    assert "xla_tpu_enable_windowed_einsum_for_all_gather" in options("tpu")
    assert "xla_gpu_enable_triton_gemm" in options("gpu")
    assert not options("tpu") & options("gpu")


def plan(*args: str, expect: int) -> str:
    return cli.run(*args, expect=expect, module="vit_jax.plan")


@pytest.mark.parametrize(
    "args, message",
    [
        (["--topology=v5e:3x5"], "nearest: v5e:4x4"),
        (["--topolgy=v5e:4x4"], '"--topology"'),
        (["--topology=v5e:4x4", "--fsat"], '"--fast"'),
        (["--topology=v5e:4x4", "--slices=many"], "--slices"),
        (["--topology=v5e:4x4", "--config.data.name=mine"], "--num_examples"),
        (["--topology=v5e:4x4", "--config.mesh.fsdp=3"], "Nearest layouts"),
        ([], "both needed"),
    ],
)
def test_what_a_user_can_get_wrong(args: list[str], message: str) -> None:
    output = plan("--config=configs/quickstart.py", *args, expect=2)
    assert message in output
    assert output.count("error: ") == 1
    assert "Traceback" not in output


def test_a_wider_head_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fall 2011's 21,843 classes on winter 2021's 19,167; with a plan for a report."""
    monkeypatch.chdir(cli.ROOT)
    monkeypatch.setattr(planner.Planner, "plan", lambda *_, **__: {"fits": True})
    args = ["", "--config=configs/imagenet21k.py", "--topology=v5e:4x4", "--json"]
    winter = "--config.data.name=imagenet21k_winter21"
    for more, said in (
        ([], False),
        ([winter], True),
        ([winter, "--config.model.num_classes=19167"], False),
    ):
        assert vit_jax.plan.main([*args, *more]) == 0
        told = "the data has 19,167 classes, the head 21,843" in capsys.readouterr().err
        assert told == said
    narrower = "--config.model.num_classes=1000"
    assert vit_jax.plan.main([*args, winter, narrower]) == 2
    assert "but the data has 19167 classes" in capsys.readouterr().err


def test_this_machine_is_planned_by_running() -> None:
    output = plan(
        "--config=configs/quickstart.py",
        "--topology=local",
        "--json",
        "--config.model.depth=1",
        "--config.mixup=0.0",
        expect=0,
    )
    measured = json.loads(output)
    assert measured["step_ms"] > 0
    assert measured["total_steps"] == 12_500
    assert 0 < measured["share_of_matmul_rate"] < 1.5
    assert measured["bytes_per_device"]["arguments"] > 0


def test_bundles_that_cannot_be_all() -> None:
    """16 chips of 275 TFLOP/s need 1 s for 4.4e15 operations."""
    topology, flops = topologies.parse("v4:2x2x4", 1), {"hardware": 4.4e15}
    assert figures.too_few_bundles(topology, flops, {"bundles_ms": 1001.0}) == []
    assert figures.too_few_bundles(topology, flops, None) == []
    (line,) = figures.too_few_bundles(topology, flops, {"bundles_ms": 900.0})
    assert "take 900.0 ms, and the products 1000.0 at the peak" in line
