"""What the compiler of a platform has to be told, in training and in planning."""

from typing import Any

# XLA writes the gathers of sharded weights as many small permutes between which parts
# of the product are computed ("windowed einsum"). On v5e, where it does so by itself,
# a step of H/14 sharded over 16 devices took twice as long.
_TPU = {
    "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}


def options(device: Any) -> dict[str, str]:
    """Options for programs that run on devices such as this one."""
    return dict(_TPU) if device.platform == "tpu" else {}
