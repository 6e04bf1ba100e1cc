"""Every entry of the catalog is read as TFDS reads it, from what TFDS has written."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import entries
from vit_jax import data
from vit_jax.data import catalog
from vit_jax.data.crop import Box
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError

COUNT = 4


def name_of(entry: str) -> str:
    """What `config.data.name` may be."""
    configs = catalog.ENTRIES[entry].configs
    return f"{entry}/{configs[-1]}" if configs else entry


def entry_of(name: str) -> catalog.Entry:
    entry = catalog.find(name)
    assert entry is not None
    return entry


NAMES = [name_of(entry) for entry in catalog.ENTRIES if entry != "fashion_mnist_mini"]


def clevr_distance(record: Any) -> int:
    nearest = min(z for _, _, z in record["objects"]["pixel_coords"])
    return int(np.digitize(nearest, [8, 8.5, 9, 9.5, 10], right=True))


def kitti_distance(record: Any) -> int:
    kinds, places = record["objects"]["type"], record["objects"]["location"]
    vehicles = [p[2] for k, p in zip(kinds, places, strict=True) if k in (0, 1, 2)]
    return int(np.digitize(min([1000, *vehicles]), [8, 20, 999], right=True))


# Labels by the definitions of task_adaptation, from what TFDS reads.
DEFINITIONS: dict[str, Any] = {
    "vtab/clevr_count_all": lambda r: len(r["objects"]["size"]) - 3,
    "vtab/clevr_closest_distance": clevr_distance,
    "vtab/kitti_closest_vehicle_distance": kitti_distance,
    "vtab/dsprites_label_orientation": lambda r: r["label_orientation"] // 2.5,
    "vtab/dsprites_label_x_position": lambda r: r["label_x_position"] // 2,
    "vtab/smallnorb_label_azimuth": lambda r: r["label_azimuth"],
    "vtab/smallnorb_label_elevation": lambda r: r["label_elevation"],
    "imagenet2012_real": lambda r: r["real_label"],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """The folder of each dataset that holds an entry, under one root."""
    root, folders = tmp_path_factory.mktemp("entries"), {}
    for name in NAMES:
        stored = catalog.stored_name(name)
        if stored not in folders:
            split = next(iter(entry_of(name).stored))
            folders[stored] = entries.write(name, root, split=split, count=COUNT)
    folders["root"] = root
    return folders


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_read_as_tfds_reads_it(name, written):
    entry = entry_of(name)
    split = next(iter(entry.stored))
    # VTAB's own splits need more records; "train[:4]" is of the stored ones.
    expression = f"{split}[:{COUNT}]"
    dataset = data.make(
        name=name,
        data_dir=str(written["root"]),
        split=expression,
        image_size=16,
        train={},
        eval={},
    )
    records = entries.read_by_tfds(written[catalog.stored_name(name)], split)
    assert len(records) == len(dataset.source) == COUNT
    assert dataset.num_classes == entry.num_classes
    several = entry.multi_label or name in entries.WITHOUT_BUILDER
    assert dataset.source.multi_hot == several
    for i, record in enumerate(records):
        image, label = dataset.source.read(i)
        want = record["image"].astype(int)
        if entry.pixels is not None:
            want = want * 255
        want = np.repeat(want, 3, axis=2) if want.shape[2] == 1 else want
        assert image.dtype == np.uint8 and image.shape == want.shape
        assert np.abs(image - want).mean() <= 2  # JPEG decoders differ a little
        known = DEFINITIONS[name](record) if name in DEFINITIONS else record["label"]
        if dataset.source.multi_hot:
            np.testing.assert_array_equal(np.flatnonzero(label), np.unique(known))
        else:
            assert label == known
            assert 0 <= label < entry.num_classes
    part, _ = dataset.source.read(1, lambda height, width: Box(1, 2, 4, width - 2))
    np.testing.assert_array_equal(part, dataset.source.read(1)[0][1:5, 2:])
    travelled = pickle.loads(pickle.dumps(dataset.source))  # as to a worker
    np.testing.assert_array_equal(travelled.read(1)[0], dataset.source.read(1)[0])
    dataset.check(num_classes=entry.num_classes, train=True, batch_size=COUNT)
    (batch,) = dataset.eval_batches(batch_size=COUNT)
    assert batch["image"].shape == (COUNT, 16, 16, 3)
    assert batch["mask"].all()
    if entry.label_names is not None:
        assert dataset.label_names == entry.label_names


def test_label_names_are_tfdss(written):
    """Where TFDS has words, ours are the same; CIFAR's and NORB's are mere numbers."""
    compared = []
    for name in NAMES:
        entry = entry_of(name)
        if entry.label is None and entry.label_names is not None:
            folder = written[catalog.stored_name(name)]
            file = folder / f"{entry.label_key}.labels.txt"
            names = file.read_text().split("\n") if file.exists() else []
            if names and not all(n.isdigit() for n in names if n):
                assert tuple(n for n in names if n) == entry.label_names
                compared.append(name)
    assert "fashion_mnist" in compared


def test_labels_of_objects_are_all_met(written):
    """Three kinds of KITTI's pictures: with vehicles, without, and empty."""
    source = open_source(
        name="vtab/kitti_closest_vehicle_distance",
        data_dir=str(written["root"]),
        split="train[:4]",
    )
    labels = [source.read(i)[1] for i in range(len(source))]
    assert labels.count(3) == 2 and len(set(labels)) > 1


def test_a_computed_label_has_no_key(written):
    with pytest.raises(UserError, match=r"label_key=.* no effect .* is computed"):
        open_source(
            name="vtab/clevr_count_all",
            data_dir=str(written["root"]),
            split="train[:4]",
            label_key="label",
        )


def test_the_keys_of_an_entry_are_defaults(written):
    """ImageNet-ReaL may be read with its old labels too."""
    old = open_source(
        name="imagenet2012_real",
        data_dir=str(written["root"]),
        split="validation",
        label_key="original_label",
    )
    assert not old.multi_hot and old.num_classes == 1000


def test_the_datasets_own_folder_may_be_given(written):
    folder = written["dtd"]
    source = open_source(name="vtab/dtd", data_dir=str(folder), split="train[:2]")
    assert len(source) == 2
    assert open_source(name="dtd", data_dir=str(folder), split="train").name == str(
        folder
    )
    with pytest.raises(UserError, match=r'holds "dtd"; set config.data.name="dtd"'):
        open_source(name="jft", data_dir=str(folder), split="train")


def test_names_that_are_not_there(written):
    root = str(written["root"])
    with pytest.raises(UserError, match='did you mean "vtab/caltech101"'):
        open_source(name="vtab/caltech", data_dir=root, split="train800")
    with pytest.raises(UserError, match=r'split "train80".*did you mean "train800"'):
        open_source(name="vtab/dtd", data_dir=root, split="train80")
    with pytest.raises(UserError, match="past the end; it has 4 records"):
        open_source(name="vtab/dtd", data_dir=root, split="train800")
