"""A small ViT on all of Fashion-MNIST.

    python -m vit_jax.main --config=configs/fashion_mnist.py \
        --workdir=workdirs/fashion_mnist --config.data.data_dir=DIR

Needs the four files of Fashion-MNIST in DIR: {train,t10k}-images-idx3-ubyte.gz and
{train,t10k}-labels-idx1-ubyte.gz (Debian's package dataset-fashion-mnist has them).
About 40 minutes of one CPU.

Expected: an accuracy of 0.92 on the 10,000 test images. Seed 0, after so many steps:
2,000 0.806; 4,000 0.855; 6,000 0.878; 8,000 0.880; 10,000 0.897; 12,000 0.907;
14,000 0.915; 16,000 0.922; 18,000 0.923; 18,750 0.9235, in 2,292 CPU-seconds.
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
            "mixup": 0.1,
            "loss": {"label_smoothing": 0.0},
            "model": {"patch_size": 4, "num_classes": 10},
            "data": {"name": "idx"},
            "optim": {"warmup_steps": 500},
            "checkpoint": {"every": 2000, "best": "test/accuracy"},
            "evals": {"test": {"every": 2000}},
        }
    )
    return config
