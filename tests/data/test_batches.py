"""Batches as functions of (seed, step), on any rows, threads and workers."""

import hashlib
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.small import mini
from vit_jax import data
from vit_jax.data import pipeline, sampler
from vit_jax.data.builder import BatchBuilder
from vit_jax.errors import UserError

GOLDEN = {0: "01d7cdddcab09f9d", 7: "a3c748cca40a1898", 1000: "d88cd60286883183"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """28 JPEGs of several sizes, of 2 classes."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for i in range(28):
        path = root / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (30 + i, 60 - i, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return root


def of_folder(root: Path, **keys: Any) -> data.Dataset:
    keys = {"image_size": (24, 32), "train": {}, "eval": {}} | keys
    return data.make(name="folder", data_dir=str(root), **keys)


def batch(dataset, step, *, batch_size=32, seed=3, rows=None):
    batches = dataset.train_batches(
        batch_size=batch_size,
        seed=seed,
        start_step=step,
        total_steps=step + 1,
        rows=rows,
    )
    (only,) = batches
    return only


def digest(batch):
    """Of names, types, shapes and bytes."""
    parts = hashlib.sha256()
    for key in sorted(batch):
        parts.update(f"{key} {batch[key].dtype} {batch[key].shape}".encode())
        parts.update(np.ascontiguousarray(batch[key]).tobytes())
    return parts.hexdigest()[:16]


def test_shapes_and_types():
    got = batch(mini(), 0)
    assert {k: (v.shape, v.dtype.name) for k, v in got.items()} == {
        "image": ((32, 28, 28, 3), "uint8"),
        "label": ((32,), "int32"),
        "mask": ((32,), "bool"),
    }
    assert got["mask"].all()


def test_golden_batches():
    """Of images that nothing has decoded or resized: an interface, as in sampler."""
    got = {step: digest(batch(mini(), step)) for step in (0, 7, 1000)}
    assert got == GOLDEN


def test_a_batch_is_what_sampler_and_transform_say():
    dataset = mini()
    for step in (0, 249, 250, 1000):  # 250 steps an epoch
        numbers = np.arange(32 * step, 32 * step + 32)
        records = sampler.record_numbers(numbers, 8000, seed=3)
        draws = dataset.train.draw(3, numbers)
        got = batch(dataset, step)
        for i, record in enumerate(records.tolist()):
            image, label = dataset.source.read(record)
            want = dataset.train(image, (28, 28), draws.row(i))
            np.testing.assert_array_equal(got["image"][i], want)
            assert got["label"][i] == label


def test_an_epoch_shows_every_example_once_and_batches_straddle_epochs():
    """Batches of 48 over 8,000 examples: 166 and two thirds to an epoch."""
    dataset = mini(train={"crop": "none", "flip": False})
    batches = dataset.train_batches(
        batch_size=48, seed=0, start_step=0, total_steps=500
    )
    images = np.concatenate([b["image"][..., 0] for b in batches])
    assert len(images) == 3 * 8000
    source = dataset.source

    def as_a_set(images):
        return np.sort([hashlib.md5(image.tobytes()).digest() for image in images])

    want = as_a_set([source.read(i)[0][..., 0].copy() for i in range(8000)])
    epochs = images.reshape(3, 8000, 28, 28)
    for epoch in epochs:
        np.testing.assert_array_equal(as_a_set(epoch), want)
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("kind", ["in memory", "resized", "files"])
def test_any_rows_on_any_number_of_threads(kind, folder):
    """The rows that the hosts of a pod build make up the batch of one host."""

    def make(**keys):
        if kind == "files":
            return of_folder(folder, **keys)
        if kind == "resized":
            return mini(image_size=(24, 20), train={}, **keys)
        return mini(**keys)

    one, many = make(num_threads=1), make(num_threads=5)
    rng = np.random.default_rng(0)
    for step in (0, 7, 1000):
        whole = batch(one, step)
        assert digest(batch(many, step)) == digest(whole)
        for parts in (
            np.split(np.arange(32), 4),
            [np.arange(32)[i::3] for i in range(3)],
            np.array_split(rng.permutation(32), 5),
            [np.arange(0)],
        ):
            for rows in parts:
                got = batch(many, step, rows=rows)
                for key in whole:
                    np.testing.assert_array_equal(got[key], whole[key][rows])


def test_any_batch_size_shows_the_same_examples():
    small = [batch(mini(), step, batch_size=16) for step in (14, 15)]
    large = batch(mini(), 7, batch_size=32)
    for key in large:
        joined = np.concatenate([b[key] for b in small])
        np.testing.assert_array_equal(joined, large[key])


def test_starting_later_changes_nothing():
    dataset = mini()
    keys: dict[str, Any] = {"batch_size": 32, "seed": 3, "total_steps": 12}
    want = [digest(b) for b in dataset.train_batches(start_step=0, **keys)]
    assert len(set(want)) == len(want) == 12
    for start in (5, 11, 12, 13):
        got = [digest(b) for b in dataset.train_batches(start_step=start, **keys)]
        assert got == want[start:]


def test_seeds_differ_in_order_crops_and_flips():
    plain = mini(train={"crop": "none", "flip": False})
    assert digest(batch(plain, 0, seed=1)) != digest(batch(plain, 0, seed=2))
    # With one record there is only one order: crops and flips are what is left.
    one = mini(split="train[:1]")
    images = [batch(one, 0, seed=seed)["image"] for seed in (1, 2)]
    assert not np.array_equal(images[0], images[1])
    flips = mini(split="train[:1]", train={"crop": "none"})
    images = [batch(flips, 0, seed=seed)["image"] for seed in (1, 2)]
    assert not np.array_equal(images[0], images[1])
    assert len(np.unique(images[0], axis=0)) == 2  # as it is, and flipped


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_build_the_same_batches(workers, folder):
    keys: dict[str, Any] = {
        "batch_size": 10,
        "seed": 3,
        "start_step": 2,
        "total_steps": 7,
    }
    want = [digest(b) for b in of_folder(folder).train_batches(**keys)]
    dataset = of_folder(folder, num_workers=workers, num_threads=2)
    batches = dataset.train_batches(**keys)
    got = [digest(b) for b in batches]
    assert got == want
    assert len(got) == 5


def test_an_error_in_a_worker_keeps_its_type_and_message(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/train/a/4.jpg").write_bytes(b"")
    dataset = of_folder(tmp_path / "copy", num_workers=1)
    batches = dataset.train_batches(
        batch_size=28, seed=0, start_step=0, total_steps=100
    )
    with pytest.raises(UserError, match=r"train/a/4\.jpg is empty \(0 bytes\)"):
        next(batches)


def test_workers_need_no_parsed_flags(folder):
    """Outside of main nobody has parsed absl's flags, which Grain's workers read."""
    code = f"""
from vit_jax import data
if __name__ == "__main__":
    dataset = data.make(name="folder", data_dir="{folder}", image_size=8, num_workers=1,
                        train={{}}, eval={{}})
    batches = dataset.eval_batches(batch_size=16)
    print([b["mask"].sum() for b in batches])
"""
    path = folder / "script.py"
    path.write_text(code)
    root = Path(data.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "[np.int64(16), np.int64(12)]", run.stderr


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("""
import multiprocessing, os, signal
from vit_jax import data
if __name__ == "__main__":
    dataset = data.make(name="fashion_mnist_mini", image_size=28, num_workers=1,
                        split="train", train={}, eval={})
    batches = dataset.eval_batches(batch_size=8)
    next(batches)
    print(len(multiprocessing.active_children()), "worker", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    run = [sys.executable, str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE) as process:
        # The worker has this output too: it ends when both have.
        output, _ = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert output == b"1 worker\n"


def test_the_end_stays_the_end():
    batches = mini().train_batches(batch_size=8, seed=0, start_step=3, total_steps=5)
    assert len(list(batches)) == 2
    assert list(batches) == []


def test_closing_early():
    batches = mini().train_batches(
        batch_size=8, seed=0, start_step=0, total_steps=10**9
    )
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("batch_size", [1, 7, 300, 2000, 2001])
@pytest.mark.parametrize("image_size", [28, 20])
def test_evaluation_shows_each_example_once_in_order(batch_size, image_size):
    dataset = mini(split="test[:301]", image_size=image_size)
    batches = list(dataset.eval_batches(batch_size=batch_size))
    assert len(batches) == math.ceil(301 / batch_size)
    joined = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    assert len(joined["mask"]) == len(batches) * batch_size
    np.testing.assert_array_equal(np.flatnonzero(joined["mask"]), np.arange(301))
    assert not joined["image"][301:].any()
    assert not joined["label"][301:].any()
    np.testing.assert_array_equal(joined["label"][:301], dataset.source.labels())
    for i in range(301):
        want = dataset.eval(dataset.source.read(i)[0], (image_size, image_size))
        np.testing.assert_array_equal(joined["image"][i], want)


def test_evaluation_by_rows(folder):
    dataset = of_folder(folder)
    whole = list(dataset.eval_batches(batch_size=12))
    for rows in (np.arange(6), np.array([11, 3]), np.arange(8, 12)):
        parts = list(dataset.eval_batches(batch_size=12, rows=rows))
        assert len(parts) == len(whole) == 3
        for part, all_rows in zip(parts, whole, strict=True):
            for key in part:
                np.testing.assert_array_equal(part[key], all_rows[key][rows])
    assert [int(b["mask"].sum()) for b in whole] == [12, 12, 4]


def test_multi_hot_labels(tmp_path):
    rng = np.random.default_rng(0)
    hot = rng.random((10, 4), np.float32)
    path = tmp_path / "x.npz"
    np.savez(path, x_train=rng.integers(0, 256, (10, 8, 8), np.uint8), y_train=hot)
    for size in (8, 9):
        dataset = data.make(
            name="npz", data_dir=str(path), image_size=size, train={}, eval={}
        )
        (only,) = dataset.eval_batches(batch_size=12)
        assert only["label"].dtype == np.float32
        np.testing.assert_array_equal(only["label"][:10], hot)
        assert not only["label"][10:].any()
        dataset.check(num_classes=4, train=True, batch_size=4)
        with pytest.raises(UserError, match=r"over 4 classes, .* has 5; .*=4"):
            dataset.check(num_classes=5, train=True, batch_size=4)


def test_a_tfds_dataset(tfds_dir):
    """Through `make`, both formats: the same batches from both."""
    digests = []
    for file_format in ("array_record", "tfrecord"):
        dataset = data.make(
            name="animals",
            data_dir=str(tfds_dir / file_format),
            image_size=16,
            train={"area": (0.3, 1.0)},
            eval={"resize": 18},
        )
        dataset.check(num_classes=3, train=True, batch_size=8)
        dataset.check(num_classes=3, train=False, batch_size=8)
        digests.append([digest(batch(dataset, step)) for step in range(3)])
        digests.append([digest(b) for b in dataset.eval_batches(batch_size=10)])
    assert digests[:2] == digests[2:]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_sources_travel_to_workers(tfds_dir, file_format):
    data_dir = str(tfds_dir / file_format)
    dataset = data.make(
        name="animals", data_dir=data_dir, image_size=16, train={}, eval={}
    )
    want = batch(dataset, 5)  # files are open when it is sent
    sent = pickle.loads(pickle.dumps(dataset))
    assert digest(batch(sent, 5)) == digest(want)


def test_no_more_batches_are_built_ahead_than_documented(monkeypatch):
    """docs/design/input-pipeline.md derives the host's memory from this number."""
    built = []
    call = BatchBuilder.__call__

    def counted(self, step):
        built.append(step)
        return call(self, step)

    monkeypatch.setattr(BatchBuilder, "__call__", counted)
    batches = mini().train_batches(
        batch_size=8, seed=0, start_step=0, total_steps=10**6
    )
    for taken in range(1, 6):
        next(batches)
        time.sleep(0.1)
        assert taken <= len(built) <= taken + 3
    time.sleep(0.5)
    assert len(built) == 5 + 3
    batches.close()


@pytest.mark.parametrize(
    ("cores", "in_memory", "expected"),
    [
        (1, False, (0, 1)),
        (16, False, (0, 16)),
        (17, False, (2, 8)),
        (96, False, (12, 8)),
        (96, True, (0, 96)),
    ],
)
def test_workers_and_threads_by_default(cores, in_memory, expected, monkeypatch):
    monkeypatch.setattr(pipeline, "num_cores", lambda: cores)
    assert pipeline.parallelism(in_memory=in_memory) == expected
    if in_memory:
        dataset = mini()
        assert (dataset.num_workers, dataset.num_threads) == expected
        dataset = mini(num_workers=3, num_threads=5)
        assert (dataset.num_workers, dataset.num_threads) == (3, 5)


def test_what_is_read_ahead_is_freed_without_a_word() -> None:
    """Python would warn of leaks, below the message with which a run ends."""
    program = """
import os
from multiprocessing import shared_memory
from vit_jax.data import pipeline
pipeline._start_tracker()
print(shared_memory.SharedMemory(create=True, size=1000).name, flush=True)
assert "PYTHONWARNINGS" not in os.environ
os._exit(0)  # as `preemption.leave`
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,  # until the tracker has ended as well
        text=True,
    )
    assert ended.stderr == ""
    assert not Path("/dev/shm", ended.stdout.strip()).exists()
