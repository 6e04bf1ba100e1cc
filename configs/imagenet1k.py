"""ViT from scratch on ILSVRC-2012 with the settings of the paper's Table 3.

    python -m vit_jax.main --config=configs/imagenet1k.py:B/16 --workdir=DIR \
        --config.data.data_dir=TFDS_DIR

Needs `imagenet2012`, which `vit_jax.data.prepare` makes of ImageNet's tar files, or
TFDS (docs/data.md), and a TPU v3-8 or larger, or as many GPUs: 300 epochs at batch 4096
are 93,834 steps. The argument is any name that `vit_jax.list_models()` lists; without
it B/16.

Expected: the paper gives the accuracy after fine-tuning at 384 px (arXiv:2010.11929,
Table 5, column ImageNet): B/16 77.91, B/32 73.38, L/16 76.53, L/32 71.16. What this
recipe gives at 224 px has not been measured by us.
"""

from ml_collections import ConfigDict

# The width of the tanh layer below the head, which pre-training has (section 3.1).
REPRESENTATION_SIZES = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280}


def get_config(variant: str = "B/16") -> ConfigDict:
    """Table 3, row "ImageNet"; Adam's betas and the warm-up are of section 4.1."""
    size = variant.rpartition("-")[2].split("/")[0]  # of R50+ViT-B/16: B
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 4096,
            "total_epochs": 300.0,
            "log_every": 50,
            "model": {
                "variant": variant,
                "num_classes": 1000,
                "pool": "token",
                "dropout": 0.1,
                "dtype": "bfloat16",
            },
            "data": {
                "name": "imagenet2012",
                "split": "train",
                "image_size": 224,
                "train": {"crop": "inception"},
                "eval": {"resize": 256},
            },
            "loss": {"name": "softmax_xent"},
            "optim": {
                "name": "adamw",
                "b1": 0.9,
                "b2": 0.999,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_steps": 10_000,
                "weight_decay": 0.3,
                "clip_norm": 1.0,
            },
            "checkpoint": {"every": 1000, "keep": 2, "best": "val/accuracy"},
            "evals": {
                "val": {
                    "type": "classification",
                    "split": "validation",
                    "every": 5000,
                }
            },
        }
    )
    if size in REPRESENTATION_SIZES:
        config.update({"model": {"representation_size": REPRESENTATION_SIZES[size]}})
    return config
