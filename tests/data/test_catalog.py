"""What the catalog says, against the sources that its figures come from."""

import numpy as np
import pytest

from tests import cli
from vit_jax.data import catalog, splits
from vit_jax.data.catalog import vtab
from vit_jax.errors import UserError

# How task_adaptation, the code of VTAB's paper, slices TFDS's splits.
VAL200_AND_TEST = {
    "vtab/caltech101": ("train[2754:2954]", "test"),
    "vtab/cifar100": ("train[45000:45200]", "test"),
    "vtab/dtd": ("validation[:200]", "test"),
    "vtab/oxford_flowers102": ("validation[:200]", "test"),
    "vtab/oxford_iiit_pet": ("train[2944:3144]", "test"),
    "vtab/sun397": ("validation[:200]", "test"),
    "vtab/svhn": ("train[65931:66131]", "test"),
    "vtab/patch_camelyon": ("validation[:200]", "test"),
    "vtab/eurosat": ("train[16200:16400]", "train[21600:]"),
    "vtab/resisc45": ("train[18900:19100]", "train[25200:]"),
    "vtab/diabetic_retinopathy": ("validation[:200]", "test"),
    "vtab/clevr_closest_distance": ("train[63000:63200]", "validation"),
    "vtab/clevr_count_all": ("train[63000:63200]", "validation"),
    "vtab/dmlab": ("validation[:200]", "test"),
    "vtab/dsprites_label_orientation": ("train[589824:590024]", "train[663552:]"),
    "vtab/dsprites_label_x_position": ("train[589824:590024]", "train[663552:]"),
    "vtab/kitti_closest_vehicle_distance": ("validation[:200]", "test"),
    "vtab/smallnorb_label_azimuth": ("test[:200]", "test[12150:]"),
    "vtab/smallnorb_label_elevation": ("test[:200]", "test[12150:]"),
}
# Of the tests of the same code, and of the paper.
CLASSES = (102, 100, 47, 102, 37, 397, 10, 2, 10, 45, 5, 6, 8, 6, 16, 16, 4, 18, 9)
TESTED = (6_084, 10_000, 1_880, 6_149, 3_669, 21_750, 26_032, 32_768, 5_400, 6_300)
TESTED += (42_670, 15_000, 15_000, 22_735, 73_728, 73_728, 711, 12_150, 12_150)


def resolved(name: str, split: str, *, named: bool) -> list[splits.Range]:
    entry = catalog.ENTRIES[name]
    more = entry.named_splits(entry.stored) if named else None
    return splits.resolve(split, entry.stored, where=name, named=more)


def test_the_table_in_the_documentation_is_this_one():
    """Written by: python -m vit_jax.data.catalog."""
    text = (cli.ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert catalog.table() in text


def test_the_19_tasks_of_vtab():
    tasks = [name for name in catalog.ENTRIES if name.startswith("vtab/")]
    assert tasks == list(VAL200_AND_TEST)
    assert tuple(catalog.ENTRIES[t].num_classes for t in tasks) == CLASSES
    groups = [catalog.ENTRIES[task].group for task in tasks]
    assert groups == ["Natural"] * 7 + ["Specialized"] * 4 + ["Structured"] * 8
    counts = [catalog.ENTRIES[task].counts() for task in tasks]
    assert tuple(c["test"] for c in counts) == TESTED
    for count in counts:
        known = {"train800": 800, "val200": 200, "train800val200": 1000}
        assert known.items() < count.items()


@pytest.mark.parametrize("name", VAL200_AND_TEST)
def test_splits_of_vtab(name):
    val, test = VAL200_AND_TEST[name]
    for split, want in (
        ("train800", "train[:800]"),
        ("val200", val),
        ("train800val200", f"train[:800]+{val}"),
        ("test", test),
        ("train800[10:20]", "train[10:20]"),
    ):
        got = resolved(name, split, named=True)
        assert got == resolved(name, want, named=False)
    seen = {
        (r.name, i)
        for r in resolved(name, "train800+val200+test", named=True)
        for i in range(r.start, r.stop)
    }
    assert len(seen) == 1000 + catalog.ENTRIES[name].counts()["test"]  # none twice


def test_a_slice_of_two_joined_slices():
    part = resolved("vtab/cifar100", "train800val200[790:810]", named=True)
    assert part == [("train", 790, 800), ("train", 45_000, 45_010)]
    ends = resolved("vtab/dtd", "train800val200[-1:]", named=True)
    assert ends == [("validation", 199, 200)]


@pytest.mark.parametrize(
    ("distance", "label"),
    [(7.5, 0), (8.0, 0), (8.25, 1), (8.5, 1), (9.75, 4), (10.0, 4), (10.5, 5)],
)
def test_distances_of_clevr(distance, label):
    near = np.array([[1, 2, 50], [3, 4, distance]], np.float32).ravel()
    assert vtab.clevr_distance({"objects/pixel_coords": near}) == label
    assert vtab.clevr_distance({"objects/pixel_coords": np.zeros(0)}) == 6  # refused


@pytest.mark.parametrize(
    ("kinds", "distances", "label"),
    [
        # The tests of task_adaptation.
        ([0], [1], 0),
        ([0], [10], 1),
        ([0], [30], 2),
        ([4], [30], 3),
        ([0, 1], [30, 1], 0),
        # What it says of the ends, of other objects, and of none.
        ([2], [8], 0),
        ([2], [20], 1),
        ([3, 2], [1, 30], 2),
        ([], [], 3),
    ],
)
def test_distances_of_kitti(kinds, distances, label):
    location = np.zeros((len(kinds), 3), np.float32)
    location[:, 2] = distances
    features = {
        "objects/type": np.array(kinds, np.int64),
        "objects/location": location.ravel(),
    }
    assert vtab.kitti_distance(features) == label


@pytest.mark.parametrize("classes", [32, 40])
def test_bins_of_dsprites(classes):
    """Every class, by the floating-point division of task_adaptation."""
    old = np.arange(classes)
    want = np.floor(old.astype(np.float32) / np.float32(classes / 16))
    key = {32: "label_x_position", 40: "label_orientation"}[classes]
    label = catalog.ENTRIES[f"vtab/dsprites_{key}"].label
    assert label is not None and label.keys == (key,)
    got = [label.function({key: np.array([c])}) for c in old]
    assert got == want.astype(int).tolist()
    assert label.function({key: np.zeros(0)}) == -1  # refused


def test_pixels_of_dsprites():
    pixels = catalog.ENTRIES["vtab/dsprites_label_x_position"].pixels
    assert pixels is not None
    assert pixels(np.array([0, 1], np.uint8)).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("name", "ids", "absent"),
    [
        # Stingray, toucan, corn; not the tench.
        ("imagenet_a", ["n01498041", "n01843383", "n12144580"], "n01440764"),
        # Goldfish, giant panda, pizza.
        ("imagenet_r", ["n01443537", "n02510455", "n07873807"], "n01440764"),
    ],
)
def test_classes_of_the_subsets(name, ids, absent):
    """Spot checks by WordNet id; TFDS numbers the sorted ids."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    labels = imagenet_common.label_names_file()
    with open(labels, encoding="utf-8") as file:
        known = file.read().split()
    present = catalog.ENTRIES[name].classes_present
    assert present is not None and len(set(present)) == 200
    assert list(present) == sorted(present) and 0 <= present[0] < present[-1] < 1000
    assert {known.index(i) for i in ids} <= set(present)
    assert known.index(absent) not in present


def test_corruptions():
    configs = catalog.ENTRIES["imagenet2012_corrupted"].configs
    assert len(configs) == 95 and "gaussian_blur_5" in configs
    assert catalog.find("imagenet2012_corrupted/fog_3") is not None
    assert catalog.find("imagenet2012_corrupted/mist_3") is None


def test_names():
    assert catalog.find("jft") is None
    assert catalog.find("imagenet2012:5.1.0") is catalog.ENTRIES["imagenet2012"]
    assert catalog.stored_name("imagenet2012:5.1.0") == "imagenet2012:5.1.0"
    assert catalog.stored_name("vtab/svhn:3.0.0") == "svhn_cropped:3.0.0"
    with pytest.raises(UserError, match='did you mean "vtab/sun397"'):
        catalog.find("vtab/sun")
