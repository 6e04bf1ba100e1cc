"""What the TPU compiler makes of a training step, on a machine without a TPU."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from vit_jax.planning import topologies
from vit_jax.program import Program

pytest.importorskip("libtpu")  # of the extra [plan], which `make test` and CI install

# Scanned, under the default remat policy. There are 49 tokens, and no parameter with
# such an axis: what has it is an activation.
MODEL = {
    "patch_size": 4,
    "width": 256,
    "depth": 2,
    "scan": True,
    "write_norms": True,
    "mlp_dim": 256,
    "num_heads": 4,
    "pool": "gap",
    "posemb": "sincos2d",
    "dtype": "bfloat16",
}
DATA: Any = SimpleNamespace(
    image_shape=(28, 28, 3), label_classes=None, mean=(0.5,) * 3, std=(0.5,) * 3
)


def compiled(
    topology: str, mesh: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> str:
    for name, value in topologies.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    program = Program(
        DATA,
        topologies.devices(topologies.parse(topology)),
        seed=0,
        batch_size=32,
        total_steps=10,
        num_classes=10,
        accumulation_steps=1,
        mixup=0.0,
        ema=None,
        model=MODEL,
        loss={"name": "softmax_xent"},
        optim={"name": "adamw", "learning_rate": 1e-3},
        mesh=mesh,
    )
    hlo = program.compile_train_step().as_text()
    assert hlo is not None
    return hlo


@pytest.mark.parametrize("mesh", [(2, 2, 1), (2, 1, 2)])
def test_attention_is_fused_where_its_arrays_are(
    mesh: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"data": mesh[0], "fsdp": mesh[1], "tensor": mesh[2]}
    hlo = compiled("v5e:2x2", sizes, monkeypatch)
    kernels = re.findall(r"%fused_attention_(\w+?)[.\d]* = .*tpu_custom_call", hlo)
    # Once each in the bodies of two loops: remat computes no attention again.
    assert sorted(kernels) == ["backward", "forward"]

    # A product reads what LayerNorm wrote, and does not compute it for itself.
    products = re.findall(r"^%fused_computation.*?^}", hlo, re.M | re.S)
    products = [x for x in products if " convolution(" in x]
    of_norm = re.compile(r" fusion\(.*/LayerNorm_\d/convert_element_type")
    assert products and not [x for x in products if of_norm.search(x)]

    images, lanes = 32 // (mesh[0] * mesh[1]), 256 // mesh[2]
    assert f"bf16[{images},49,{lanes}]" in hlo  # each device's own images and heads
    moved = re.findall(r"= (.*) (all-gather|all-to-all|collective-permute)\S*\(", hlo)
    assert not [shape for shape, _ in moved if re.search(r"[\[,]49[\],]", shape)]
