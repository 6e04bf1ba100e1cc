"""What the compiler of a platform has to be told, in training and in planning."""

from typing import Any

# XLA writes the gathers of sharded weights as many small permutes between which parts
# of the product are computed ("windowed einsum"). On v5e, where it does so by itself,
# a step of H/14 sharded over 16 devices took twice as long.
_TPU = {
    "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}

# docs/design/gpu.md has the figures.
_GPU = {
    # Tried for every product, Triton's kernels lost to cuBLAS's in all that matter. By
    # then the bias and GELU had been kept apart, which cuBLAS could have computed too.
    "xla_gpu_enable_triton_gemm": "False",
    # Products that read the same tokens, as those of q, k and v, would become one, and
    # a pass over its result would add the biases and take it apart.
    "xla_gpu_dot_merger_threshold_mb": "0",
}


def options(device: Any) -> dict[str, str]:
    """Options for programs that run on devices such as this one."""
    return dict({"tpu": _TPU, "gpu": _GPU}.get(device.platform, {}))
