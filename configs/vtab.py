"""VTAB-1k: fine-tuning on 1,000 images of each of 19 tasks (arXiv:1910.04867).

    python -m vit_jax.launch.sweep --config=configs/vtab.py:b16 --workdir=DIR \
        --config.init_from=B_16.npz --config.data.data_dir=TFDS_DIR

runs all 19, one after the other, and ends with a table: each task's test accuracy, and
the means of the Natural, Specialized and Structured tasks and of all. One task alone:
`python -m vit_jax.main` with `--config.data.name=vtab/caltech101`. Needs weights, the
tasks prepared by TFDS, and a GPU or TPU. The argument is a model as in finetune.py.

The paper's settings (arXiv:2010.11929, appendix B.1.1): 2,500 steps of 512, learning
rate 0.01, 384 px, the same for every task. As in VTAB's own protocol images are resized
to a square and not augmented, since flips and crops change some tasks' labels.

Expected: the paper's Table 2, the mean over 19 tasks and three runs: L/16 pre-trained
on ImageNet-21k 72.72, on JFT 76.28, H/14 on JFT 77.63. We have not measured them.
Three seeds: `--recipe --grid config.seed=0,1,2`.
"""

from ml_collections import ConfigDict

from configs import finetune

# The groups of VTAB's Table 1.
TASKS = {
    "Natural": (
        "caltech101",
        "cifar100",
        "dtd",
        "oxford_flowers102",
        "oxford_iiit_pet",
        "sun397",
        "svhn",
    ),
    "Specialized": (
        "diabetic_retinopathy",
        "eurosat",
        "patch_camelyon",
        "resisc45",
    ),
    "Structured": (
        "clevr_closest_distance",
        "clevr_count_all",
        "dmlab",
        "dsprites_label_orientation",
        "dsprites_label_x_position",
        "kitti_closest_vehicle_distance",
        "smallnorb_label_azimuth",
        "smallnorb_label_elevation",
    ),
}


def get_config(model: str = "b16") -> ConfigDict:
    """Fine-tuning as for the paper's other small tasks, and no augmentation."""
    config = finetune.get_config(f"{model},vtab/caltech101")
    config.update(
        {
            "data": {
                "split": "train800val200",
                "train": {"crop": "resize", "flip": False},
                "eval": {"crop": "none"},
            },
            "evals": {"test": {"every": 2_500}},
        }
    )
    return config


def sweep() -> list[dict[str, str]]:
    """One trial a task."""
    names = [name for tasks in TASKS.values() for name in tasks]
    return [{"data.name": f"vtab/{name}"} for name in names]


def group(config: dict[str, dict[str, str]]) -> str:
    """The group of a trial, for the means at the end of the table."""
    task = config["data"]["name"].removeprefix("vtab/")
    return next((name for name, tasks in TASKS.items() if task in tasks), "other")
