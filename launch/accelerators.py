"""The TPUs of Google Cloud: their names, topologies, and chips to a host.

Names of GKE's node pools, and machine types: "Plan TPUs in GKE",
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; accelerator types:
https://cloud.google.com/tpu/docs/supported-tpu-configurations; software versions:
https://cloud.google.com/tpu/docs/runtimes.
"""

import dataclasses
import math
import re

from vit_jax.errors import UserError, did_you_mean

MOST_SLICES = 1024

# v5e and v6e: these slices of a 16x16 torus and no others.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# v4 and v5p: these below a cube of 64 chips, and above it sides that 4 divides.
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One generation.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator.
      prefix: of an accelerator type, "v5litepod" in "v5litepod-16".
      runtime: the software version of its TPU VMs.
      sides: of a topology; 2 for a torus, 3 for a cube.
    """

    gke: str
    prefix: str
    runtime: str
    sides: int


TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 3),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite", 2),
    "v5p": Tpu("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 3),
    "v6e": Tpu("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e", 2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, such as v5e:4x4."""

    tpu: Tpu
    topology: str
    chips_per_host: int

    @property
    def hosts(self) -> int:
        return chips(self.topology) // self.chips_per_host


def check_slices(slices: int) -> None:
    """Refuses a number of slices that nobody has.

    Raises:
      UserError: for one outside 1..MOST_SLICES.
    """
    if not 1 <= slices <= MOST_SLICES:
        raise UserError(f"--slices={slices}: it should be 1 to {MOST_SLICES:,}")


def chips(topology: str) -> int:
    """The chips of a topology.

    >>> chips("4x4"), chips("2x2x4")
    (16, 16)
    """
    return math.prod(int(side) for side in topology.split("x"))


def slice_of(topology: str, *, chips_per_host: int | None = None) -> Slice:
    """The slice that `--topology=TYPE:AxB` means.

    Hosts have 4 chips each, but v5e and v6e also come as single hosts of 1 and 8 chips:
    2x4 is one machine ct5lp-hightpu-8t unless `chips_per_host` says 4, which means two
    machines ct5lp-hightpu-4t.

    >>> slice_of("v5e:4x4").hosts, slice_of("v5p:4x4x4").hosts
    (4, 16)
    >>> slice_of("v6e:2x4").hosts, slice_of("v6e:2x4", chips_per_host=4).hosts
    (1, 2)

    Raises:
      UserError: for an unknown type, or a topology that it does not come in.
    """
    name, _, shape = topology.partition(":")
    if name not in TPUS:
        raise UserError(
            f'--topology={topology}: there is no TPU "{name}" here, as in v5e:4x4; '
            + did_you_mean(name, TPUS)
        )
    tpu = TPUS[name]
    if not is_offered(shape, tpu.sides):
        offered = ", ".join(_FLAT if tpu.sides == 2 else _SMALL)
        larger = "" if tpu.sides == 2 else ", or sides in order that 4 divides: 4x4x8"
        raise UserError(
            f'--topology={topology}: {name} does not come as "{shape}", but as '
            f"{offered}{larger}"
        )
    count = chips(shape)
    single_host = {1: 1, 8: 8} if tpu.sides == 2 else {}
    default = single_host[count] if count in single_host else 4
    if chips_per_host not in (None, default) and (shape, chips_per_host) != ("2x4", 4):
        raise UserError(
            f"--chips_per_host={chips_per_host}: {topology} has {default} chips a host"
        )
    return Slice(tpu, shape, chips_per_host or default)


def is_offered(shape: str, sides: int) -> bool:
    """Whether a generation of 2 or 3 sides comes in this shape.

    >>> is_offered("4x4", 2), is_offered("4x4x8", 3), is_offered("4x8x4", 3)
    (True, True, False)
    """
    if sides == 2 or shape in _SMALL:
        return shape in (_FLAT if sides == 2 else _SMALL)
    if not re.fullmatch(r"\d+x\d+x\d+", shape):
        return False
    lengths = [int(side) for side in shape.split("x")]
    return lengths == sorted(lengths) and all(n > 0 and n % 4 == 0 for n in lengths)


def of_accelerator_type(accelerator_type: str) -> Tpu:
    """The generation of an accelerator type such as v5litepod-16 or v4-32.

    >>> of_accelerator_type("v5litepod-16").runtime
    'v2-alpha-tpuv5-lite'

    Raises:
      UserError: if it is not of a known one.
    """
    prefix, _, size = accelerator_type.partition("-")
    by_prefix = {tpu.prefix: tpu for tpu in TPUS.values()}
    if prefix not in by_prefix:
        hint = did_you_mean(prefix, by_prefix)
    elif not size.isdigit():
        hint = f"a size is missing, as in {prefix}-16"
    else:
        return by_prefix[prefix]
    raise UserError(
        f'--accelerator_type="{accelerator_type}" is not a type of TPU; {hint}'
    )
