"""TPU topologies: which exist, what their chips can do, and devices to compile for.

Where the figures are from. FLOPs, HBM, its bandwidth, topologies, and the bandwidth of
a link (the two-way total of a chip over its links and directions): Google Cloud's pages
on each version (docs.cloud.google.com/tpu/docs/v5e and so on). Links and clocks of v2
and v3: Jouppi et al., 2020, CACM 63(7); of v4: Jouppi et al., 2023, arXiv:2304.01433.
Later clocks: peak FLOPs over those of the matrix units in a cycle. The data-centre
network, per chip: "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus); for
v2 and v3, which it leaves out, 100 Gbit/s a host. HBM that a program may use: what
libtpu 0.0.52 says when it refuses one.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.limits import is_number

GIB = 2**30
MAX_CHIPS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip can do; a device of JAX is one chip or one of its cores.

    Attributes:
      devices: of JAX on a chip.
      peak_flops: dense bf16, per second, of the chip.
      hbm: bytes that a program may use on each device.
      hbm_bandwidth: bytes per second of the chip.
      clock: bundles per second of a core.
      link_bandwidth: bytes per second of one link in one direction.
      dcn_bandwidth: bytes per second and chip to other slices.
      dimensions: of the torus that the chips form.
      wraps_at: a dimension of so many chips closes to a ring; None where each
        multiple of 4 does, as with optical switches.
      options: of `get_topology_desc`.
    """

    devices: int
    peak_flops: float
    hbm: float
    hbm_bandwidth: float
    clock: float
    link_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    wraps_at: int | None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def device_flops(self) -> float:
        return self.peak_flops / self.devices

    @property
    def device_hbm_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices


CHIPS = {
    "v2": Chip(
        devices=2,
        peak_flops=46e12,
        hbm=7.48 * GIB,
        hbm_bandwidth=700e9,
        clock=0.70e9,
        link_bandwidth=62e9,
        dcn_bandwidth=3.1e9,
        dimensions=2,
        wraps_at=16,
    ),
    "v3": Chip(
        devices=2,
        peak_flops=123e12,
        hbm=15.48 * GIB,
        hbm_bandwidth=900e9,
        clock=0.94e9,
        link_bandwidth=82e9,
        dcn_bandwidth=3.1e9,
        dimensions=2,
        wraps_at=32,
    ),
    "v4": Chip(
        devices=1,
        peak_flops=275e12,
        hbm=30.75 * GIB,
        hbm_bandwidth=1228e9,
        clock=1.05e9,
        link_bandwidth=50e9,
        dcn_bandwidth=6.25e9,
        dimensions=3,
        wraps_at=None,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        devices=1,
        peak_flops=197e12,
        hbm=15.75 * GIB,
        hbm_bandwidth=819e9,
        clock=1.5e9,
        link_bandwidth=50e9,
        dcn_bandwidth=3.125e9,
        dimensions=2,
        wraps_at=16,
    ),
    "v5p": Chip(
        devices=1,
        peak_flops=459e12,
        hbm=95.73 * GIB,
        hbm_bandwidth=2765e9,
        clock=1.75e9,
        link_bandwidth=100e9,
        dcn_bandwidth=6.25e9,
        dimensions=3,
        wraps_at=None,
    ),
    "v6e": Chip(
        devices=1,
        peak_flops=918e12,
        hbm=31.24 * GIB,
        hbm_bandwidth=1640e9,
        clock=1.75e9,
        link_bandwidth=100e9,
        dcn_bandwidth=12.5e9,
        dimensions=2,
        wraps_at=16,
    ),
    "tpu7x": Chip(
        devices=2,
        peak_flops=2307e12,
        hbm=94.74 * GIB,
        hbm_bandwidth=7370e9,
        clock=2.2e9,
        link_bandwidth=100e9,
        dcn_bandwidth=12.5e9,
        dimensions=3,
        wraps_at=None,
    ),
}

# Of those with a torus of two dimensions; the others follow a rule, see `shapes`.
_FLAT = {
    "v2": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v3": ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of TPUs.

    Attributes:
      version: a key of `CHIPS`.
      shape: chips of one slice along each dimension.
      slices: joined by the data-centre network.
    """

    version: str
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        name = f"{self.version}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{self.slices} x {name}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.version]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices

    def wraps(self, dimension: int) -> bool:
        """Whether the chips along a dimension of the torus form a ring."""
        if self.chip.wraps_at is not None:
            return self.shape[dimension] == self.chip.wraps_at
        return all(n % 4 == 0 for n in self.shape)


def shapes(version: str) -> list[str]:
    """The slices that one can have, up to 1,024 chips, the smallest first.

    Those of three dimensions are made of cubes of 4x4x4, or are a part of one.

    >>> shapes("v4")[:6]
    ['2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8']
    """
    if version in _FLAT:
        return list(_FLAT[version])
    cubes = [
        shape
        for shape in itertools.combinations_with_replacement(range(4, 65, 4), 3)
        if math.prod(shape) <= MAX_CHIPS
    ]
    cubes.sort(key=lambda shape: (math.prod(shape), max(shape)))
    parts = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    return ["x".join(map(str, shape)) for shape in (*parts, *cubes)]


def parse(name: str, slices: int = 1) -> Topology:
    """A topology from its name, such as "v5e:16x16".

    Raises:
      UserError: if there is none of this name; it says which are nearest.

    >>> parse("v4:2x2x4").num_devices, parse("v3:4x4").num_devices
    (16, 32)
    """
    version, colon, shape = name.partition(":")
    if version not in CHIPS or not colon:
        near = difflib.get_close_matches(version, CHIPS, n=2) or CHIPS
        examples = ", ".join(f"{v}:{shapes(v)[2]}" for v in near)
        raise UserError(
            f"--topology={name}: it should be VERSION:SHAPE, such as {examples}, or "
            f'"local" for this machine; versions: {", ".join(CHIPS)}'
        )
    valid = shapes(version)
    if shape not in valid:
        raise UserError(
            f"--topology={name}: {version} has no slices of {shape or 'no'} chips; "
            f"nearest: {', '.join(f'{version}:{s}' for s in nearest(shape, valid))}"
            + ("; more by --slices=N" if version in _FLAT else "")
        )
    dimensions = tuple(int(n) for n in shape.split("x"))
    topology = Topology(version, dimensions, slices)
    if slices < 1 or topology.num_chips > MAX_CHIPS:
        most = MAX_CHIPS // math.prod(dimensions)
        raise UserError(
            f"--slices={slices}: it should be 1 to {most}, since at most {MAX_CHIPS:,} "
            f"chips are planned and {name} has {math.prod(dimensions)}"
        )
    return topology


def nearest(shape: str, valid: Sequence[str], most: int = 3) -> list[str]:
    """The valid shapes nearest in their number of chips.

    >>> nearest("3x5", shapes("v5e"))
    ['4x4', '2x4', '4x8']
    """

    def chips(text: str) -> float:
        numbers = [int(n) for n in text.split("x") if is_number(n) and int(n)]
        return math.log(math.prod(numbers))

    target = chips(shape)
    return sorted(valid, key=lambda other: abs(chips(other) - target))[:most]


# What libtpu is told before it is loaded, where there is no TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # it would wait for a metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # several plans at a time
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # or it complains, as of the next
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(topology: Topology) -> list[Any]:
    """JAX devices to compile for; they are not here, and nothing can be run on them.

    The process needs `ENVIRONMENT` before it imports JAX.
    """
    from jax.experimental import topologies

    options: dict[str, Any] = dict(topology.chip.options)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    shape = "x".join(map(str, topology.shape))
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{topology.version}:{shape}", **options
    )
    return list(description.devices)
