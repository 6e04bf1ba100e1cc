"""A small ViT on all of Fashion-MNIST.

    python -m vit_jax.main --config=configs/fashion_mnist.py \
        --workdir=workdirs/fashion_mnist --config.data.data_dir=DIR

Needs the four files of Fashion-MNIST in DIR: {train,t10k}-images-idx3-ubyte.gz and
{train,t10k}-labels-idx1-ubyte.gz (Debian's package dataset-fashion-mnist has them).
About 45 minutes of one CPU.

Expected: an accuracy above 0.90 on the 10,000 test images.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """60,000 images to train on; the model of the quickstart with patches of 4x4."""
    config = quickstart.get_config()
    config.update(
        {
            "batch_size": 64,
            "total_epochs": 20.0,
            "model": {"patch_size": 4, "num_classes": 10},
            "data": {"name": "idx"},
            "optim": {"warmup_steps": 500},
            "checkpoint": {"every": 2000, "best": "test/accuracy"},
            "evals": {"test": {"every": 2000}},
        }
    )
    return config
