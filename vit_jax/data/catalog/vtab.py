"""The 19 tasks of VTAB-1k (Zhai et al. 2019, arXiv:1910.04867).

Splits and labels are those of the paper's code, github.com/google-research/
task_adaptation: `train800` are the first 800 records of what it trains on, `val200` the
first 200 of what it validates on, `train800val200` both, and `test` what it tests on.
"""

import functools
import itertools
from collections.abc import Mapping

import numpy as np

from vit_jax.data.catalog.common import DIGITS
from vit_jax.data.catalog.entry import Derived, Entry, Features, Slices

# `config.data.train` and `config.data.eval` of every task: the whole image, resized.
TRAIN_TRANSFORM = {"crop": "resize", "flip": False}
EVAL_TRANSFORM = {"crop": "none"}

_COUNTS = "counts of github.com/google-research/task_adaptation"


def _own_splits(test: str = "test") -> Slices:
    """Of datasets that have a validation split; `test` is what is tested on."""

    def slices(sizes: Mapping[str, int]) -> dict[str, str]:
        del sizes
        return _named("train[:800]", "validation[:200]", test)

    return slices


def _cut(train: int, *, test: str | None = None) -> Slices:
    """Of datasets whose validation records are cut from `train`.

    Args:
        train: the percentage that is trained on, rounded down.
        test: the split to test on; None: what is left is halved into validation and
            test.
    """

    def slices(sizes: Mapping[str, int]) -> dict[str, str]:
        total = sizes["train"] if "train" in sizes else 0
        first = train * total // 100
        rest = (100 - train) // 2 * total // 100
        val = f"train[{first}:{first + 200}]"
        return _named("train[:800]", val, test or f"train[{first + rest}:]")

    return slices


def _norb_splits(sizes: Mapping[str, int]) -> dict[str, str]:
    half = 50 * sizes["test"] // 100 if "test" in sizes else 0
    return _named("train[:800]", "test[:200]", f"test[{half}:]")


def _named(train: str, val: str, test: str) -> dict[str, str]:
    return {
        "train800": train,
        "val200": val,
        "train800val200": f"{train}+{val}",
        "test": test,
    }


def highest_below(thresholds: tuple[float, ...], value: np.ndarray) -> int:
    """The index of the last threshold that is less than `value`; -1 for none.

    >>> highest_below((0.0, 8.0, 20.0), np.float32(8.5))
    1
    """
    return int(np.flatnonzero(np.array(thresholds) < np.float64(value)).max(initial=-1))


def clevr_count(features: Features) -> int:
    """The number of objects, 3 to 10, less 3."""
    return len(features["objects/size"]) - 3


CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)


def clevr_distance(features: Features) -> int:
    """The range that the distance of the closest object lies in.

    The third of an object's pixel coordinates is its distance from the camera.
    """
    distances = features["objects/pixel_coords"].reshape(-1, 3)[:, 2]
    return highest_below(CLEVR_DISTANCES, distances.min(initial=np.inf))


_VEHICLES = 3  # Car, Van and Truck are the first of KITTI's types
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)


def kitti_distance(features: Features) -> int:
    """Closest vehicle: below 8 m, below 20 m, farther, or none.

    The third coordinate of a location is the distance along the camera's axis.
    """
    vehicles = features["objects/type"] < _VEHICLES
    distances = features["objects/location"].reshape(-1, 3)[vehicles, 2]
    return highest_below(KITTI_DISTANCES, distances.min(initial=1000.0))


def bin_of(features: Features, *, key: str, classes: int, bins: int) -> int:
    """The bin of a ClassLabel, neighbouring classes put together; -1 for no label.

    >>> bin_of({"x": np.array([7])}, key="x", classes=40, bins=16)
    2
    """
    values = features[key]
    return int(values[0] * bins // classes) if len(values) == 1 else -1


def _binned(key: str, *, classes: int, bins: int) -> Derived:
    function = functools.partial(bin_of, key=key, classes=classes, bins=bins)
    return Derived((key,), function)


def _stretch(image: np.ndarray) -> np.ndarray:
    """DSprites' pixels are 0 and 1."""
    return image * np.uint8(255)


_DISTANCE_NAMES = tuple(
    f"distance {low:g} to {high:g}" for low, high in itertools.pairwise(CLEVR_DISTANCES)
)


def _clevr(label: Derived, label_names: tuple[str, ...]) -> Entry:
    return Entry(
        stored_as="clevr",
        num_classes=len(label_names),
        stored={"train": 70_000, "validation": 15_000, "test": 15_000},
        slices=_cut(90, test="validation"),
        label=label,
        label_names=label_names,
        access="CC BY 4.0; the test split of TFDS has no labels",
        source=_COUNTS,
        group="Structured",
    )


def _dsprites(label: Derived) -> Entry:
    return Entry(
        stored_as="dsprites",
        num_classes=16,
        stored={"train": 737_280},
        slices=_cut(80),
        label=label,
        pixels=_stretch,
        access="Apache-2.0",
        source=_COUNTS,
        group="Structured",
    )


def _smallnorb(label_key: str, label_names: tuple[str, ...]) -> Entry:
    return Entry(
        stored_as="smallnorb",
        num_classes=len(label_names),
        stored={"train": 24_300, "test": 24_300},
        slices=_norb_splits,
        label_key=label_key,
        label_names=label_names,
        access="for research; free download",
        source=_COUNTS,
        group="Structured",
    )


ENTRIES = {
    "vtab/caltech101": Entry(
        stored_as="caltech101",
        num_classes=102,
        stored={"train": 3_060, "test": 6_084},
        slices=_cut(90, test="test"),
        access="CC BY 4.0",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/cifar100": Entry(
        stored_as="cifar100",
        num_classes=100,
        stored={"train": 50_000, "test": 10_000},
        slices=_cut(90, test="test"),
        access="no licence stated; free download",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/dtd": Entry(
        stored_as="dtd",
        num_classes=47,
        stored={"train": 1_880, "validation": 1_880, "test": 1_880},
        slices=_own_splits(),
        access="for research; free download",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/oxford_flowers102": Entry(
        stored_as="oxford_flowers102",
        num_classes=102,
        stored={"train": 1_020, "validation": 1_020, "test": 6_149},
        slices=_own_splits(),
        access="no licence stated; free download",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/oxford_iiit_pet": Entry(
        stored_as="oxford_iiit_pet",
        num_classes=37,
        stored={"train": 3_680, "test": 3_669},
        slices=_cut(80, test="test"),
        access="CC BY-SA 4.0",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/sun397": Entry(
        stored_as="sun397/tfds",
        num_classes=397,
        stored={"train": 76_128, "validation": 10_875, "test": 21_750},
        slices=_own_splits(),
        access="for research; free download",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/svhn": Entry(
        stored_as="svhn_cropped",
        num_classes=10,
        stored={"train": 73_257, "test": 26_032, "extra": 531_131},
        slices=_cut(90, test="test"),
        label_names=DIGITS,
        access="for non-commercial use; free download",
        source=_COUNTS,
        group="Natural",
    ),
    "vtab/patch_camelyon": Entry(
        stored_as="patch_camelyon",
        num_classes=2,
        stored={"train": 262_144, "validation": 32_768, "test": 32_768},
        slices=_own_splits(),
        label_names=("no tumour tissue in the centre", "tumour tissue"),
        access="CC0",
        source=_COUNTS,
        group="Specialized",
    ),
    "vtab/eurosat": Entry(
        stored_as="eurosat/rgb",
        num_classes=10,
        stored={"train": 27_000},
        slices=_cut(60),
        access="MIT",
        source=_COUNTS,
        group="Specialized",
    ),
    "vtab/resisc45": Entry(
        stored_as="resisc45",
        num_classes=45,
        stored={"train": 31_500},
        slices=_cut(60),
        access="no licence stated; by hand, see TFDS",
        source=_COUNTS,
        group="Specialized",
    ),
    "vtab/diabetic_retinopathy": Entry(
        stored_as="diabetic_retinopathy_detection/btgraham-300",
        num_classes=5,
        stored={"train": 35_126, "validation": 10_906, "test": 42_670},
        slices=_own_splits(),
        label_names=("none", "mild", "moderate", "severe", "proliferative"),
        access="Kaggle's competition rules; by hand, see TFDS",
        source=_COUNTS,
        group="Specialized",
    ),
    "vtab/clevr_closest_distance": _clevr(
        Derived(("objects/pixel_coords",), clevr_distance), _DISTANCE_NAMES
    ),
    "vtab/clevr_count_all": _clevr(
        Derived(("objects/size",), clevr_count),
        tuple(f"{n} objects" for n in range(3, 11)),
    ),
    "vtab/dmlab": Entry(
        stored_as="dmlab",
        num_classes=6,
        stored={"train": 65_550, "validation": 22_628, "test": 22_735},
        slices=_own_splits(),
        access="no licence stated; free download",
        source=_COUNTS,
        group="Structured",
    ),
    "vtab/dsprites_label_orientation": _dsprites(
        _binned("label_orientation", classes=40, bins=16)
    ),
    "vtab/dsprites_label_x_position": _dsprites(
        _binned("label_x_position", classes=32, bins=16)
    ),
    "vtab/kitti_closest_vehicle_distance": Entry(
        stored_as="kitti",
        num_classes=4,
        stored={"train": 6_347, "validation": 423, "test": 711},
        slices=_own_splits(),
        label=Derived(("objects/type", "objects/location"), kitti_distance),
        label_names=("below 8 m", "8 to 20 m", "farther than 20 m", "no vehicle"),
        access="CC BY-NC-SA 3.0",
        source=_COUNTS,
        group="Structured",
    ),
    "vtab/smallnorb_label_azimuth": _smallnorb(
        "label_azimuth", tuple(f"{20 * n} degrees" for n in range(18))
    ),
    "vtab/smallnorb_label_elevation": _smallnorb(
        "label_elevation", tuple(f"{30 + 5 * n} degrees" for n in range(9))
    ),
}
