"""A ViT of 1,000 classes on ImageNet, ReaL, v2, A, R, Sketch and C, in one command.

    python -m vit_jax.main --config=configs/imagenet_evals.py:B/16 --workdir=DIR \
        --evaluate_only --config.init_from=WEIGHTS --config.data.data_dir=TFDS_DIR

Needs weights with a head of ImageNet's 1,000 classes (`init_from`: all that
`vit_jax.load` reads, or a workdir), their `--config.data.image_size`, `.mean` and
`.std`, and the datasets, prepared (docs/datasets.md); `--evals=v2,r` chooses some. The
argument is any name that `vit_jax.list_models()` lists. ImageNet-C alone has 3.75
million images.

Expected: the accuracies that the weights' authors report; those of the paper's ViTs on
ReaL are in Table 5 of arXiv:2010.11929. We have not measured them.
"""

from ml_collections import ConfigDict

from configs import imagenet1k

# (name of the evaluation, TFDS's name, split).
TEST_SETS = (
    ("real", "imagenet2012_real", "validation"),
    ("v2", "imagenet_v2/matched-frequency", "test"),
    ("a", "imagenet_a", "test"),
    ("r", "imagenet_r", "test"),
    ("sketch", "imagenet_sketch", "test"),
)


def get_config(variant: str = "B/16") -> ConfigDict:
    """The training of configs/imagenet1k.py, evaluated on more at its end."""
    config = imagenet1k.get_config(variant)
    evals = {
        name: {"type": "classification", "split": split, "data": {"name": dataset}}
        for name, dataset, split in TEST_SETS
    }
    # Its images are cropped to 224 pixels already.
    evals["c"] = {"type": "corruptions", "data": {"eval": {"resize": None}}}
    # As fine-tuned models are, without pre-training's layer below the head.
    config.update({"model": {"representation_size": None}, "evals": evals})
    return config
