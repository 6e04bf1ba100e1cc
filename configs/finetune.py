"""Fine-tuning of a pre-trained ViT at 384 px with the settings of the paper's Table 4.

    python -m vit_jax.main --config=configs/finetune.py:b16,cifar10 --workdir=DIR \
        --config.init_from=B_16.npz --config.data.data_dir=TFDS_DIR

Needs weights (`init_from`: all that `vit_jax.load` reads, or a workdir), the dataset
(by TFDS, or your own; docs/data.md), and a GPU or TPU. The argument is MODEL,DATASET: a
model such as b16, l32, h14 or r50+b16, and imagenet, cifar10, cifar100, pets, flowers,
or any other name, which gets VTAB's 2,500 steps. `vit_jax.launch.sweep` tries the
paper's learning rates.

Expected: the paper's Table 5 for the weights published with it, for example B/16 from
ImageNet-21k 83.97 on ImageNet and 98.95 on CIFAR-10. We have not measured them.
"""

from ml_collections import ConfigDict, config_dict

from configs import imagenet1k

_GRID = (0.003, 0.01, 0.03, 0.06)
_SMALL_GRID = (0.001, 0.003, 0.01, 0.03)
# Table 4: TFDS's name, splits to train on and to evaluate, steps, learning rates.
DATASETS = {
    "imagenet": ("imagenet2012", "train", "validation", 20_000, _GRID),
    "cifar10": ("cifar10", "train", "test", 10_000, _SMALL_GRID),
    "cifar100": ("cifar100", "train", "test", 10_000, _SMALL_GRID),
    "pets": ("oxford_iiit_pet", "train", "test", 500, _SMALL_GRID),
    "flowers": ("oxford_flowers102", "train+validation", "test", 500, _SMALL_GRID),
}


def get_config(arg: str = "b16,cifar10") -> ConfigDict:
    """SGD with momentum, cosine, batch 512, no weight decay, clipped at norm 1."""
    model, _, dataset = arg.partition(",")
    if not dataset:
        raise ValueError(f'"{arg}" should be MODEL,DATASET, such as b16,cifar10')
    other = (dataset, "train", "test", 2_500, (0.01,))
    name, train, test, steps, rates = DATASETS.get(dataset, other)
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 512,
            "total_steps": steps,
            "log_every": 50,
            "init_from": config_dict.placeholder(str),
            "init_head": "new",
            "model": {"variant": imagenet1k.variant_of(model), "dtype": "bfloat16"},
            "data": {
                "name": name,
                "split": train,
                "image_size": 384,
                "train": {"crop": "inception"},
            },
            "optim": {
                "name": "sgd",
                "momentum": 0.9,
                "moment_dtype": "bfloat16",
                "learning_rate": rates[len(rates) // 2],
                "schedule": "cosine",
                "warmup_steps": min(500, steps // 10),
                "clip_norm": 1.0,
            },
            "checkpoint": {"every": 1000, "keep": 1},
            "evals": {
                "test": {"type": "classification", "split": test, "every": steps // 5}
            },
        }
    )


def sweep() -> list[dict[str, float]]:
    """The learning rates that Table 4 tries for CIFAR, Pets and Flowers."""
    return [{"optim.learning_rate": rate} for rate in _SMALL_GRID]
