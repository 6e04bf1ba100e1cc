"""One of two processes of test_hosts.py; its arguments: address and number."""

import sys

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding


def main(address: str, number: int) -> None:
    """Puts a batch on devices that alternate between the processes."""
    jax.distributed.initialize(address, 2, number)
    devices = np.array(jax.devices())[[0, 2, 1, 3]]
    mesh = Mesh(devices.reshape(4, 1, 1), ("data", "fsdp", "tensor"))
    laid_out = sharding.batch_sharding(mesh)
    rows = sharding.process_rows(laid_out, 12)
    mine = [0, 1, 2, 6, 7, 8] if number == 0 else [3, 4, 5, 9, 10, 11]
    assert rows.tolist() == mine
    whole = np.arange(24).reshape(12, 2)
    array = sharding.put_batch({"x": whole[rows]}, laid_out, 12)["x"]
    assert array.shape == (12, 2)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=sharding.replicated(mesh))
    np.testing.assert_array_equal(np.asarray(total(array)), whole.sum(axis=0))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
