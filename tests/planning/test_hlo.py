"""What the compiler dumps as text, read and compared with hand counts."""

import textwrap

import pytest

from vit_jax.errors import UserError
from vit_jax.planning import collectives, hlo, memory, schedule, topologies, traffic

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


def test_a_loop_that_does_not_count_by_ones() -> None:
    """Zeros are sent in pieces of 4,096 until 16,384 are: four times. Not by -1."""
    lines = [
        "  0x0 LB: > { %s5_s9 = sadd.s32 4294967295, %s4_s9;; %s1 = sadd.s32 9, %x }",
        "  0x1   : > { %s2_s9 = sadd.s32 4096, %s7_s9 /* copy for cssa */ }",
        "  0x2   : > { %p = scmp.ge.s32 %s2_s9, 16384 /* loop exit test */ }",
        "  0x3 LB: > { %s5_s9 = sadd.s32 4294967295, %s5_s9 }",
        "  0x4   : > { %p = scmp.ge.s32.totalorder %s5_s9, 7 /* loop exit test */ }",
        "  0x5 LB: > { %s2_s9 = sadd.s32 4, %s2_s9 }",
        "  0x6   : > { %p = scmp.ge.s32.totalorder %s2_s9, 9 /* loop exit test */ }",
    ]
    assert schedule.parse(lines).cycles(lambda _: 1) == 4 * 3 + 7 * 2 + 3 * 2


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


def test_dumps_of_an_unknown_form_are_not_taken_for_no_memory() -> None:
    """Up to libtpu 0.0.50 allocations had no page."""
    pytest.importorskip("libtpu")  # its version is told
    older = ASSIGNMENT.replace(" page 0,", "")
    assert older != ASSIGNMENT
    with pytest.raises(UserError, match=r"libtpu [\d.]+ tells .* from 0.0.51 on"):
        memory.read(older, LIVE, hlo.Module(LOOP))
