"""The parts of a plan that need no compiler, against hand counts and closed forms."""

import json
import shlex
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests import cli
from vit_jax import compiler, config, models
from vit_jax.errors import UserError
from vit_jax.planning import (
    collectives,
    data_shapes,
    figures,
    flops,
    hlo,
    memory,
    schedule,
    search,
    topologies,
    traffic,
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


# --- HLO

LOOP = textwrap.dedent(
    """\
    HloModule m

    %body (p: (s32[], f32[4,128])) -> (s32[], f32[4,128]) {
      %p = (s32[], f32[4,128]{1,0:T(4,128)}) parameter(0)
      %x = f32[4,128]{1,0:T(4,128)} get-tuple-element(%p), index=1
      %g = f32[8,128]{1,0:T(8,128)} all-gather(%x), channel_id=1, replica_groups={{0,1}}
      %r = f32[8,128]{1,0:T(8,128)} all-reduce(%g), channel_id=2, replica_groups={{0,1}}
      ROOT %t = (s32[], f32[4,128]) tuple(%p, %x)
    }

    %condition (q: (s32[], f32[4,128])) -> pred[] {
      %q = (s32[], f32[4,128]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%q), index=0
      %n = s32[] constant(12)
      ROOT %lt = pred[] compare(%i, %n), direction=LT
    }

    %sliced (a: f32[12,8,128], i: s32[]) -> f32[8,128] {
      %a = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
      %i2 = s32[] parameter(1)
      %s = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%a, %i2), dynamic_slice_sizes={1}
      ROOT %b = f32[8,128]{1,0:T(8,128)} bitcast(%s)
    }

    ENTRY %main (z: f32[12,8,128]) -> f32[8,128] {
      %z = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
      %j = s32[] constant(3)
      %w = (s32[], f32[4,128]) while(%z), condition=%condition, body=%body
      ROOT %f = f32[8,128]{1,0:T(8,128)} fusion(%z, %j), kind=kLoop, calls=%sliced
    }
    """
)


def test_loops_count_with_their_iterations() -> None:
    module = hlo.Module(LOOP)
    assert module.entry == "main"
    assert module.times() == {"main": 1, "body": 12}
    assert module.uncounted_loops() == []
    endless = hlo.Module(LOOP.replace("direction=LT", "direction=NE"))
    assert endless.times()["body"] == 1
    assert len(endless.uncounted_loops()) == 1


LAYERS = textwrap.dedent(
    """\
    HloModule m

    %add.1 (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %r = f32[] add(%a, %b)
    }

    %add.2 (c: f32[], d: f32[]) -> f32[] {
      %c = f32[] parameter(0)
      %d = f32[] parameter(1)
      ROOT %s = f32[] add(%c, %d)
    }

    %layer.1 (x: f32[8,128]) -> f32[8] {
      %x = f32[8,128]{1,0} parameter(0)
      %g = f32[8,128]{1,0} all-gather(%x), channel_id=1, dimensions={0}
      %z = f32[] constant(0)
      ROOT %sum = f32[8]{0} reduce(%g, %z), dimensions={1}, to_apply=%add.1
    }

    %layer.2 (y: f32[8,128]) -> f32[8] {
      %y = f32[8,128]{1,0} parameter(0)
      %h = f32[8,128]{1,0} all-gather(%y), channel_id=2, dimensions={0}
      %n = f32[] constant(0)
      ROOT %sum2 = f32[8]{0} reduce(%h, %n), dimensions={1}, to_apply=%add.2
    }

    ENTRY %main (w: f32[8,128]) -> f32[8] {
      %w = f32[8,128]{1,0} parameter(0)
      %one = f32[8]{0} fusion(%w), kind=kLoop, calls=%layer.1
      ROOT %two = f32[8]{0} fusion(%w), kind=kLoop, calls=%layer.2
    }
    """
)


def test_equal_layers_have_the_code_of_one() -> None:
    """They differ in their channels and in the names of what they call."""

    def cycles(text: str) -> tuple[int | None, int | None]:
        found = schedule.Cycles(hlo.Module(text), {"one": schedule.Loop(7, trips=1)})
        return found.of("one"), found.of("two")

    assert cycles(LAYERS) == (7, 7)
    assert cycles(LAYERS.replace("%s = f32[] add(", "%s = f32[] maximum(")) == (7, None)
    assert cycles(LAYERS.replace("%n = f32[] constant(0", "%n = f32[] constant(1")) == (
        7,
        None,
    )


def test_a_slice_of_an_operand_is_read_as_a_slice() -> None:
    module = hlo.Module(LOOP)
    fusion = module.computations["main"]["f"]
    layer = 8 * 128 * 4
    assert traffic.hbm_bytes(module, "main", fusion) == 2 * layer + 4  # and the index
    on_chip = LOOP.replace("%f = f32[8,128]{1,0:T(8,128)}", "%f = f32[8,128]{1,0:S(1)}")
    module = hlo.Module(on_chip)
    fusion = module.computations["main"]["f"]
    assert traffic.hbm_bytes(module, "main", fusion) == layer + 4


@pytest.mark.parametrize(
    "shape, padded",
    [
        ("bf16[12,64,197,12,64]{2,4,3,1,0:T(8,128)(2,1)}", 12 * 64 * 256 * 12 * 64 * 2),
        ("f32[64,12,197,197]{3,2,1,0:T(8,128)}", 64 * 12 * 200 * 256 * 4),
        ("f32[768]{0:T(1024)}", 1024 * 4),
        ("pred[]{:T(512)}", 512),
        ("f32[3,5]{1,0}", 60),
    ],
)
def test_padding(shape: str, padded: int) -> None:
    assert hlo.arrays(shape)[0].padded_bytes == padded


def test_time_of_collectives() -> None:
    """By hand: two chips of v5e side by side, one link of 50 GB/s between them."""
    places = [(0, 0, 0, 0), (0, 1, 0, 0)]
    sent = collectives.read(hlo.Module(LOOP), topologies.parse("v5e:2x2"), places)
    by_kind = {one.kind: one for one in sent}
    whole = 8 * 128 * 4
    assert by_kind["all-gather"].count == by_kind["all-reduce"].count == 12
    assert by_kind["all-gather"].bytes == by_kind["all-reduce"].bytes == 12 * whole
    half = 12 * whole / 2 / 50e9
    assert by_kind["all-gather"].seconds == pytest.approx(half)
    assert by_kind["all-reduce"].seconds == pytest.approx(2 * half)
    apart = [(0, 0, 0, 0), (1, 0, 0, 0)]
    sent = collectives.read(hlo.Module(LOOP), topologies.parse("v5e:2x2", 2), apart)
    assert all(one.crosses_slices for one in sent)
    gather = next(one for one in sent if one.kind == "all-gather")
    assert gather.seconds == pytest.approx(12 * whole / 2 / 3.125e9)


def test_transfers_between_slices() -> None:
    """What the compiler makes of an all-reduce over two slices: 3.125 GB/s a chip."""
    transfer = (
        "  %x = f32[1024]{0:T(1024)} parameter(0)\n"
        "  %send.1 = (f32[1024]{0}, u32[], token[]) send(%x, %token), channel_id=6, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="'
        'ALL_REDUCE"}\n'
    )
    text = f"ENTRY %main (x: f32[1024]) -> f32[1024] {{\n{transfer}}}\n"
    text = text.replace(", %token", "")
    (one,) = collectives.read(hlo.Module(text), topologies.parse("v5e:4x4", 2), [])
    assert (one.kind, one.bytes, one.crosses_slices) == ("all-reduce", 4096, True)
    assert one.seconds == pytest.approx(2 * 4096 / 2 / 3.125e9)


# --- schedules


def test_loops_of_a_schedule() -> None:
    """1 + 3 * (1 + 1 + 5 * (2 + 1) + 1) + 1 bundles; the empty one has no depth."""
    lines = [
        "LB: loop body",
        "     0   :  { %a = b } /* entry */",
        "  0x1 LB: > { %a = b }",
        "  0x2   :  {}",
        "  0x3 LB: >> { %a = b }",
        "  0x4   : >> { %a = b }",
        "  0x5   : >> { %p = scmp.ge.s32 %s1_s2, 5 /* loop exit test */ }",
        "  0x6   : > { %p = scmp.ge.s32 %s3_s3, 3 /* loop exit test */ }",
        "  0x7   :  { %23 = inlined_call %s0_s0 /* %fusion.7 = fusion(%x) */ }",
    ]
    loop = schedule.parse(lines)
    assert loop.cycles(lambda _: 1) == 1 + 3 * (2 + 5 * 3 + 1) + 1
    assert list(loop.all_calls()) == ["fusion.7"]


# --- memory

ASSIGNMENT = """\
BufferAssignment:
allocation 0: size 1000, page 0, parameter 0, shape |f32[250]|, maybe-live-out:
allocation 1: size 64, page 0, thread-local:
allocation 2: size 8, page 0, constant:
allocation 3: size 24, page 0, output shape is |f32[6]|, maybe-live-out:
allocation 4: size 400, page 0, preallocated-temp:
 value: <1 x @0> (size=100,offset=0): f32[25]{0}
 value: <2 y{} @0> (size=100,offset=100): f32[25]{0}
 value: <3 z @0> (size=200,offset=100): f32[50]{0}
 value: <6 u @0> (size=100,offset=300): f32[25]{0}
 value: <4 w{1} (phi) @0> (size=100,offset=0): f32[25]{0}
allocation 5: size 777, color 1, page 0, preallocated-temp:
 value: <5 v @1> (size=777,offset=0): f32[25]{0}

Total bytes used: 1
"""
LIVE = """\
  BufferLiveRange:
    x{}:0-5
    w{1}:3-9
    y{}:1-2
    z{}:6-8
    u{}:6-7
    v{}:0-9
"""


def test_peak_of_temporaries() -> None:
    """x and w lie in one place and are one; with z and u they are most, from 6 on."""
    read = memory.read(ASSIGNMENT, LIVE, hlo.Module(LOOP))
    assert (read.arguments, read.temporaries, read.outputs) == (1000, 400, 24)
    assert [buffer.size for buffer in read.peak] == [200, 100, 100]
    assert read.free_at_peak == 0
    assert read.total == 1000 + 400 + 24 + 8


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
        result["time"] = {"parts": {"MLP": float(200 - size)}}
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
    assert len(full) == asked.count(False) == search.MOST_FULL
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


# --- what the compiler is told, and the command line


def test_compiler_options_are_for_tpus_alone() -> None:
    class Tpu:
        platform = "tpu"

    assert compiler.options(jax.devices()[0]) == {}
    assert "xla_tpu_enable_windowed_einsum_for_all_gather" in compiler.options(Tpu())


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
