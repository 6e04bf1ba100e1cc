"""Global batches 0, 7 and 1,000, whoever builds them and whatever they are read from.

The images are PNGs of fixed pixels in three containers, written by PIL and TFDS. What
is golden is not resized, so that neither decoders nor OpenCV's versions matter.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from vit_jax import data, sharding
from vit_jax.data import sampler

CONTAINERS = ("folder", "array_record", "tfrecord")
RECORDS, BATCH, SEED = 29, 16, 11
STEPS = (0, 7, 1000)
GOLDEN = {0: "aa57def05c0c0e86", 7: "d2ba9ab766946ce4", 1000: "dd5c8d05f0ecaed4"}
PAD = {"crop": "pad", "padding": 3}
INCEPTION = {"area": (0.2, 1.0)}

# Devices along (data, fsdp, tensor), and which of the 8 each host has.
EIGHT = np.arange(8)
HOSTS = {
    "1": ((8, 1, 1), [EIGHT]),
    "2": ((8, 1, 1), np.split(EIGHT, 2)),
    "2 scattered": ((4, 2, 1), [EIGHT[::2], EIGHT[1::2]]),
    "4": ((2, 4, 1), np.split(EIGHT, 4)),
    "4 scattered": ((8, 1, 1), [EIGHT[i::4] for i in range(4)]),
    "4 with tensor": (
        (2, 2, 2),
        [EIGHT[[0, 7]], EIGHT[[1, 6]], *np.split(EIGHT[2:6], 2)],
    ),
}


def pixels() -> np.ndarray:
    """uint8 [n, 20, 24, 3], from a counter."""
    bits = sampler.random_bits(np.uint64(1), np.arange(RECORDS * 20 * 24 * 3))
    return (bits >> np.uint64(56)).astype(np.uint8).reshape(RECORDS, 20, 24, 3)


def label(i: int) -> int:
    """In the order of class folders."""
    return i * 3 // RECORDS


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """The same records as {folder,array_record,tfrecord}, in the same order."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("containers")
    names = ["a", "b", "c"]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=names),
        }
    )
    examples = []
    for i, image in enumerate(pixels()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        path = root / "folder" / "train" / names[label(i)] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        examples.append((f"{i:02}", {"image": file.getvalue(), "label": label(i)}))
    for file_format in CONTAINERS[1:]:
        tfds.dataset_builders.store_as_tfds_dataset(
            name="same",
            version="1.0.0",
            features=features,
            split_datasets={"train": examples},
            data_dir=root / file_format,
            file_format=file_format,
            download_config=tfds.download.DownloadConfig(num_shards=3),
            disable_shuffling=True,
        )
    return root


def opened(root: Path, container: str, **keys: Any) -> data.Dataset:
    name = "folder" if container == "folder" else "same"
    keys = {"image_size": (20, 24), "train": PAD, "eval": {}} | keys
    return data.make(name=name, data_dir=str(root / container), **keys)


def batches(dataset, start, stop, rows=None) -> Iterator[data.Batch]:
    return dataset.train_batches(
        batch_size=BATCH, seed=SEED, start_step=start, total_steps=stop, rows=rows
    )


def rows_of_hosts(hosts: str) -> list[np.ndarray]:
    """The rows that `batch_sharding` gives to the devices of each host."""
    shape, hosts_devices = HOSTS[hosts]
    devices = jax.devices()
    mesh = Mesh(np.array(devices).reshape(shape), ("data", "fsdp", "tensor"))
    laid_out = sharding.batch_sharding(mesh)
    slices = laid_out.devices_indices_map((BATCH,))
    rows = np.arange(BATCH)
    return [
        np.unique(np.concatenate([rows[slices[devices[i]]] for i in numbers]))
        for numbers in hosts_devices
    ]


def joined(dataset, step, hosts) -> data.Batch:
    """The global batch from the rows of each host; what two have must be the same."""
    whole: data.Batch = {}
    seen = np.zeros(BATCH, bool)
    for rows in rows_of_hosts(hosts):
        (part,) = batches(dataset, step, step + 1, rows)
        for key, values in part.items():
            array = whole.setdefault(
                key, np.zeros((BATCH, *values.shape[1:]), values.dtype)
            )
            twice = seen[rows]
            np.testing.assert_array_equal(array[rows[twice]], values[twice])
            array[rows] = values
        seen[rows] = True
    assert seen.all()
    return whole


def digest(batch: data.Batch) -> str:
    """Of names, types, shapes and bytes."""
    parts = hashlib.sha256()
    for key in sorted(batch):
        parts.update(f"{key} {batch[key].dtype} {batch[key].shape}".encode())
        parts.update(np.ascontiguousarray(batch[key]).tobytes())
    return parts.hexdigest()[:16]


def by_numpy(step: int) -> data.Batch:
    """He et al. 2016, 4.2, from the documented streams of random numbers."""
    numbers = np.arange(step * BATCH, (step + 1) * BATCH)
    records = sampler.record_numbers(numbers, RECORDS, seed=SEED)
    corner = sampler.uniforms(SEED, sampler.Stream.CROP, numbers, 2)
    flip = sampler.uniforms(SEED, sampler.Stream.FLIP, numbers, 1)[:, 0] < 0.5
    images = []
    for i, record in enumerate(records):
        padded = np.pad(pixels()[record], ((3, 3), (3, 3), (0, 0)))
        top, left = np.floor(corner[i] * 7).astype(int)
        image = padded[top : top + 20, left : left + 24]
        images.append(image[:, ::-1] if flip[i] else image)
    labels = np.array([label(record) for record in records.tolist()], np.int32)
    return {
        "image": np.stack(images),
        "label": labels,
        "mask": np.ones(BATCH, bool),
    }


@pytest.mark.parametrize("step", STEPS)
def test_golden(step):
    assert digest(by_numpy(step)) == GOLDEN[step]


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_any_hosts_and_containers(container, hosts, root):
    dataset = opened(root, container)
    assert {s: digest(joined(dataset, s, hosts)) for s in STEPS} == GOLDEN
    resized = opened(root, container, train=INCEPTION, image_size=(16, 12))
    one = opened(root, "folder", train=INCEPTION, image_size=(16, 12), num_threads=1)
    for step in STEPS:
        (want,) = batches(one, step, step + 1)
        assert digest(joined(resized, step, hosts)) == digest(want)


def test_hosts_on_a_pod_have_scattered_and_shared_rows():
    assert np.diff(rows_of_hosts("2 scattered")[0]).max() > 1
    of_tensor = rows_of_hosts("4 with tensor")
    assert sum(len(rows) for rows in of_tensor) > BATCH


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_resumed_run_goes_on_with_the_same(container, root):
    dataset = opened(root, container)
    whole = [digest(batch) for batch in batches(dataset, 0, 9)]
    assert (whole[0], whole[7]) == (GOLDEN[0], GOLDEN[7])
    for start in (1, 7):
        assert [digest(b) for b in batches(dataset, start, 9)] == whole[start:]
    assert digest(next(iter(batches(dataset, 1000, 1001)))) == GOLDEN[1000]


@pytest.mark.parametrize(
    ("container", "workers"),
    [
        pytest.param(
            container,
            workers,
            marks=pytest.mark.slow
            if CONTAINERS.index(container) == workers - 1
            else pytest.mark.campaign,
        )
        for container in CONTAINERS
        for workers in (1, 2, 3)
    ],
)
def test_any_number_of_workers(container, workers, root):
    """One host, and the second of two, from the start and where a run goes on."""
    many = opened(root, container, num_workers=workers)
    whole = [digest(b) for b in batches(many, 0, 8)]
    assert (whole[0], whole[7]) == (GOLDEN[0], GOLDEN[7])
    rows = rows_of_hosts("2 scattered")[1]
    keys: dict[str, Any] = {"train": INCEPTION, "image_size": (16, 12)}
    many = opened(root, container, num_workers=workers, **keys)
    alone = opened(root, container, **keys)
    for start, stop in ((0, 8), (1000, 1001)):
        got = [digest(b) for b in batches(many, start, stop, rows)]
        assert got == [digest(b) for b in batches(alone, start, stop, rows)]
        assert len(got) == stop - start
