"""ViT pre-trained on ImageNet-21k with the settings of the paper's Table 3.

    python -m vit_jax.main --config=configs/imagenet21k.py:B/16 --workdir=DIR \
        --config.data.data_dir=TFDS_DIR --config.data.name=NAME

Needs ImageNet-21k (14.2 million images, 21,843 classes) in TFDS's format, under the
name that `data.name` gives: `vit_jax.data.prepare` makes it of the tar files of its
classes (docs/data.md). Of the winter 2021 release, which has 19,167 classes, with
--config.data.name=imagenet21k_winter21 --config.model.num_classes=19167. 90
epochs at batch 4096 are 311,000 steps: a pod.

Expected: the paper gives the accuracy on ImageNet after fine-tuning at 384 px
(arXiv:2010.11929, Table 5, column ImageNet-21k): B/16 83.97, B/32 81.28, L/16 85.15,
L/32 80.99, H/14 85.13. What this recipe gives has not been measured by us.
"""

from ml_collections import ConfigDict

from configs import imagenet1k


def get_config(variant: str = "B/16") -> ConfigDict:
    """Table 3, row "ImageNet-21k"; the first 51,200 images are kept to test on."""
    config = imagenet1k.get_config(variant)
    config.update(
        {
            "total_epochs": 90.0,
            "model": {"num_classes": 21_843},
            "data": {"name": "imagenet21k", "split": "train[51200:]"},
            "optim": {
                "learning_rate": 1e-3,
                "schedule": "linear",
                "weight_decay": 0.03,
            },
            "evals": {"val": {"split": "train[:51200]"}},
        }
    )
    return config
