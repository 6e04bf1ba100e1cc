"""ViT from scratch on ILSVRC-2012 with the settings of the paper's Table 3.

    python -m vit_jax.main --config=configs/imagenet1k.py:B/16 --workdir=DIR \
        --config.data.data_dir=TFDS_DIR

Needs `imagenet2012`, which `vit_jax.data.prepare` makes of ImageNet's tar files, or
TFDS (docs/data.md), and a TPU v3-8 or larger, or as many GPUs: 300 epochs at batch 4096
are 93,834 steps. The argument is any name that `vit_jax.list_models()` lists, or what
others call it, such as b16, ViT-B_16 or vit_base_patch16; without it B/16.

Expected: the paper gives the accuracy after fine-tuning at 384 px (arXiv:2010.11929,
Table 5, column ImageNet): B/16 77.91, B/32 73.38, L/16 76.53, L/32 71.16. What this
recipe gives at 224 px has not been measured by us.
"""

from ml_collections import ConfigDict

# What sizes are called, in small letters; "G" alone is not "g".
_SIZES = {
    "ti": "Ti",
    "tiny": "Ti",
    "s": "S",
    "small": "S",
    "b": "B",
    "base": "B",
    "l": "L",
    "large": "L",
    "so400m": "So400m",
    "h": "H",
    "huge": "H",
    "g": "g",
    "giant": "g",
    "gigantic": "G",
    "e": "e",
}
# The width of the tanh layer below the head, which pre-training has (section 3.1).
REPRESENTATION_SIZES = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280}


def get_config(variant: str = "B/16") -> ConfigDict:
    """Table 3, row "ImageNet"; Adam's betas and the warm-up are of section 4.1."""
    name = variant_of(variant)
    size = name.rpartition("-")[2].split("/")[0]  # of R50+ViT-B/16: B
    config = ConfigDict(
        {
            "seed": 0,
            "batch_size": 4096,
            "total_epochs": 300.0,
            "log_every": 50,
            "model": {
                "variant": name,
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


def variant_of(name: str) -> str:
    """The name of `vit_jax.list_models()` for a model that others call otherwise.

    >>> [variant_of(name) for name in ("b16", "ViT-L_32", "vit_base_patch16_224")]
    ['B/16', 'L/32', 'B/16']
    >>> [variant_of(name) for name in ("r50+b16", "So400m/14", "G/14", "giant-14")]
    ['R50+ViT-B/16', 'So400m/14', 'G/14', 'g/14']
    """
    resnet, plus, vit = name.strip().rpartition("+")
    for separator in ("patch", "-", "_", "/"):
        vit = vit.replace(separator, " ")
    words = vit.split()
    if words and words[0].lower() == "vit":
        words = words[1:]
    if len(words) > 1 and not words[0][-1].isdigit():  # B 16, and not b16
        words = [words[0] + words[1], *words[2:]]
    whole = words[0] if words else ""
    size = whole.rstrip("0123456789")
    patch, key = whole[len(size) :], size.lower().removeprefix("vit")
    pixels = words[1:]  # of the images, which timm's names end with
    if key not in _SIZES or not patch or not all(word.isdigit() for word in pixels):
        raise ValueError(
            f'"{name}" is no model: expected a name such as B/16, b16 or ViT-B_16, or '
            "R50+ViT-B/16"
        )
    found = f"{'G' if size == 'G' else _SIZES[key]}/{patch}"
    return f"{resnet.capitalize()}+ViT-{found}" if plus else found
