"""The input pipeline against tf.data and against decoding alone.

    python benchmarks/input.py

Steady state of decode, random resized crop to 224 px and flip, in batches of 128, from
JPEGs of 500x375 pixels and ~90 KB: crops of the one photograph that comes with
matplotlib, mirrored at random, written by TFDS as tfrecord and as array_record. Each
contender has a process of its own and as many threads as there are cores. They take
turns, a round each, and are stopped meanwhile; medians over the rounds are printed.

    vit_jax      Dataset.train_batches, from array_record and from tfrecord: with the
                 extra [jpeg], which decodes the crop alone, and with OpenCV.
    tf.data      deterministic, shuffled, private threads; decode_and_crop_jpeg, which
                 decodes the crop alone. From tfrecord: it cannot read array_record.
                 With the exact IDCT, which gives our pixels; "fast IDCT" is
                 TensorFlow's default, up to 18 of 255 off.
    decode only  cv2.imdecode (libjpeg-turbo) of whole JPEGs in memory, and no more.

Both resize in two ways: "bilinear", without antialiasing, as tf.image.resize does by
default and as the paper's code; and "area", averages over areas, which is the default
of vit_jax.

CPU-seconds hold the workers', on a busy machine they say more than images/s. Two more
figures: images of 32x32 in memory, padded, cropped and flipped; and the share of a
training step that is spent waiting for data.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_SIZE, BATCH = 224, 128
JPEG_SIZE, JPEG_BYTES = (500, 375), 90_000
WARM_UP = 2  # batches before each round; the process was stopped in between
AREA, RATIO = (0.05, 1.0), (3 / 4, 4 / 3)

Batches = Iterator[Any]


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


# What is read.


def jpegs(count: int) -> list[bytes]:
    """Crops of a photograph, at the quality that makes them ~90 KB on average."""
    import cv2
    from matplotlib import cbook

    path = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    photo = np.asarray(cv2.imread(path))
    rng = np.random.default_rng(0)
    width, height = JPEG_SIZE
    images = []
    for _ in range(count):
        top = rng.integers(photo.shape[0] - height + 1)
        left = rng.integers(photo.shape[1] - width + 1)
        crop = photo[top : top + height, left : left + width]
        images.append(crop[:, ::-1] if rng.random() < 0.5 else crop)

    def encode(image: np.ndarray, quality: int) -> bytes:
        flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return cv2.imencode(".jpg", image, flags)[1].tobytes()

    def mean_size(quality: int) -> float:
        return float(np.mean([len(encode(image, quality)) for image in images[:16]]))

    best = min(range(80, 101), key=lambda q: abs(mean_size(q) - JPEG_BYTES))
    return [encode(image, best) for image in images]


def prepare(root: Path, count: int) -> None:
    """{tfrecord,array_record}/photos/1.0.0, 4 files each, unless they are there."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
    )
    examples = [
        (f"{i:05}", {"image": data, "label": i % 1000})
        for i, data in enumerate(jpegs(count))
    ]
    for file_format in ("tfrecord", "array_record"):
        if (root / file_format).exists():
            continue
        tfds.dataset_builders.store_as_tfds_dataset(
            name="photos",
            version="1.0.0",
            features=features,
            split_datasets={"train": examples},
            data_dir=root / file_format,
            file_format=file_format,
            download_config=tfds.download.DownloadConfig(num_shards=4),
            disable_shuffling=True,
        )


# Contenders: functions of the folder, each an endless iterator over batches.


def ours(
    root: Path, file_format: str, *, opencv: bool = False, **train: Any
) -> Batches:
    from vit_jax import data
    from vit_jax.data import jpeg

    if opencv:
        jpeg.library = lambda: None
    elif jpeg.library() is None:
        raise SystemExit("the extra [jpeg] is not installed")
    dataset = data.make(
        name="photos",
        data_dir=str(root / file_format),
        image_size=IMAGE_SIZE,
        train={"area": AREA, "aspect_ratio": RATIO, **train},
        eval={},
    )
    return dataset.train_batches(
        batch_size=BATCH, seed=0, start_step=0, total_steps=10**9
    )


def tf_data(root: Path, method: str, dct: str = "INTEGER_ACCURATE") -> Batches:
    """Deterministic: every random number is a function of (seed, example number)."""
    import tensorflow as tf

    files = sorted(str(p) for p in (root / "tfrecord").rglob("*.tfrecord-*"))
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def example(number: Any, serialized: Any) -> dict[str, Any]:
        parsed = tf.io.parse_single_example(serialized, features)
        seed = tf.stack([tf.constant(0, tf.int64), number])
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(parsed["image"]),
            tf.zeros([0, 0, 4], tf.float32),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=AREA,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.io.decode_and_crop_jpeg(
            parsed["image"], window, channels=3, dct_method=dct
        )
        image = tf.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE), method=method)
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        image = tf.image.stateless_random_flip_left_right(image, seed + 1)
        return {"image": image, "label": tf.cast(parsed["label"], tf.int32)}

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = num_cores()
    options.threading.max_intra_op_parallelism = 1
    dataset = (
        tf.data.Dataset.from_tensor_slices(files)
        .repeat()
        .interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=4)
        .shuffle(512, seed=0)
        .enumerate()
        .map(example, num_parallel_calls=num_cores())
        .batch(BATCH, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    return iter(dataset.as_numpy_iterator())


def decode_only(root: Path) -> Batches:
    import cv2

    from vit_jax.data.sources.example import parse_example

    files = sorted(str(p) for p in (root / "tfrecord").rglob("*.tfrecord-*"))
    cv2.setNumThreads(1)
    encoded = []
    for path in files:
        content = Path(path).read_bytes()
        position = 0
        while position < len(content):  # TensorFlow's framing of records
            length = int.from_bytes(content[position : position + 8], "little")
            example = content[position + 12 : position + 12 + length]
            image = parse_example(example, ["image"])["image"][0]
            encoded.append(np.frombuffer(bytes(image), np.uint8))
            position += 12 + length + 4
    assert encoded

    def decode(numbers: np.ndarray) -> None:
        for i in numbers.tolist():
            cv2.imdecode(encoded[i % len(encoded)], cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(num_cores()) as pool:
        for start in itertools.count(0, BATCH):
            numbers = np.arange(start, start + BATCH)
            list(pool.map(decode, np.array_split(numbers, 4 * num_cores())))
            yield None


def in_memory(root: Path) -> Batches:
    """32x32 pixels, as CIFAR-10: a random pad-crop and flip."""
    from vit_jax import data

    path = root / "small.npz"
    if not path.exists():
        images = np.random.default_rng(0).integers(
            0, 256, (10_000, 32, 32, 3), np.uint8
        )
        np.savez(path, x_train=images, y_train=np.arange(10_000) % 10)
    dataset = data.make(
        name="npz",
        data_dir=str(path),
        image_size=32,
        train={"crop": "pad", "padding": 4},
        eval={},
    )
    return dataset.train_batches(
        batch_size=BATCH, seed=0, start_step=0, total_steps=10**9
    )


CONTENDERS: dict[str, Callable[[Path], Batches]] = {
    "bilinear, vit_jax, array_record": lambda root: ours(
        root, "array_record", interpolation="bilinear"
    ),
    "bilinear, vit_jax, tfrecord": lambda root: ours(
        root, "tfrecord", interpolation="bilinear"
    ),
    "bilinear, vit_jax, array_record, OpenCV": lambda root: ours(
        root, "array_record", interpolation="bilinear", opencv=True
    ),
    "bilinear, tf.data": lambda root: tf_data(root, "bilinear"),
    "bilinear, tf.data, fast IDCT": lambda root: tf_data(root, "bilinear", ""),
    "area, vit_jax, array_record": lambda root: ours(root, "array_record"),
    "area, vit_jax, tfrecord": lambda root: ours(root, "tfrecord"),
    "area, vit_jax, array_record, OpenCV": lambda root: ours(
        root, "array_record", opencv=True
    ),
    "area, tf.data": lambda root: tf_data(root, "area"),
    "limit: decode only": decode_only,
    "area, vit_jax, RandAugment": lambda root: ours(
        root, "array_record", augment="randaugment", num_layers=2, magnitude=10
    ),
    "vit_jax, 32x32 in memory": in_memory,
}
SMALL = "vit_jax, 32x32 in memory"


# A process for each, and the one that asks them.


def child(name: str, root: Path, num_batches: int) -> None:
    """Runs a round for each line of stdin and prints what it took as JSON."""
    batches = CONTENDERS[name](root)
    num_batches *= 20 if name == SMALL else 1
    for _ in sys.stdin:
        for _ in range(WARM_UP):
            next(batches)
        began, cpu = time.perf_counter(), cpu_seconds()
        for _ in range(num_batches):
            next(batches)
        seconds = time.perf_counter() - began
        images = num_batches * BATCH
        result = {
            "images_per_s": images / seconds,
            "cpu_ms": 1000 * (cpu_seconds() - cpu) / images,
            "mb": peak_mb(),
        }
        print(json.dumps(result), flush=True)


def processes() -> list[int]:
    workers = [p.pid for p in multiprocessing.active_children() if p.pid]
    return [os.getpid(), *workers]


def cpu_seconds() -> float:
    """Of this process and its workers, user and system."""
    ticks = 0
    for pid in processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """The largest resident memory so far, summed over the processes."""
    kb = 0
    for pid in processes():
        status = Path(f"/proc/{pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+)", status)
        kb += int(match[1]) if match else 0
    return kb / 1000


def compare(names: list[str], root: Path, rounds: int, num_batches: int) -> None:
    """Takes turns, and prints the medians as a table."""
    started: dict[str, subprocess.Popen[str]] = {}
    for name in names:
        command = [sys.executable, __file__, f"--child={name}", f"--data_dir={root}"]
        started[name] = subprocess.Popen(
            [*command, f"--batches={num_batches}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # TensorFlow's notices
            text=True,
            start_new_session=True,
        )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(1 + rounds):  # the first is to warm up
        for name, process in started.items():
            assert process.stdin is not None and process.stdout is not None
            os.killpg(process.pid, signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            results[name].append(json.loads(process.stdout.readline()))
            os.killpg(process.pid, signal.SIGSTOP)  # build no batches for next time
    for process in started.values():
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    print(f"\n| medians of {rounds} | images/s | CPU-ms an image | peak MB | images/s "
          "of the rounds |\n|---|---|---|---|---|")  # fmt: skip
    for name, found in results.items():
        found = found[1:]
        shown = {
            key: statistics.median(r[key] for r in found)
            for key in ("images_per_s", "cpu_ms", "mb")
        }
        each = " ".join(f"{r['images_per_s']:,.0f}" for r in found)
        print(
            f"| {name} | {shown['images_per_s']:,.0f} | {shown['cpu_ms']:.3f} | "
            f"{shown['mb']:,.0f} | {each} |",
            flush=True,
        )


def waiting_share(root: Path, variant: str, steps: int) -> None:
    """A real training from these JPEGs; what its own timer says."""
    workdir = tempfile.mkdtemp()
    flags = {
        "model.variant": variant,
        **dict.fromkeys(
            (
                f"model.{k}"
                for k in ("patch_size", "width", "depth", "mlp_dim", "num_heads")
            ),
            "none",
        ),
        "data.name": "photos",
        "data.data_dir": str(root / "array_record"),
        "data.image_size": str(IMAGE_SIZE),
        "data.train.crop": "inception",
        "data.train.padding": "none",
        "batch_size": "16",
        "total_epochs": "none",
        "total_steps": str(steps),
        "log_every": str(steps),
        "optim.warmup_steps": "0",
        "checkpoint.best": "none",
        "evals.test.split": "train[:1]",
        "evals.test.batch_size": "1",
    }
    command = [sys.executable, "-m", "vit_jax.main", "--config=configs/quickstart.py"]
    command += [
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in flags.items()),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    line = json.loads((Path(workdir) / "metrics.jsonl").read_text().splitlines()[-1])
    print(
        f"\n{variant} at {IMAGE_SIZE} px, batch 16, on the CPU: a step takes "
        f"{line['timing/step_s']:.2f} s, of which the loop waits "
        f"{100 * line['timing/data_wait_share']:.2f}% for data."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data_dir", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--images", type=int, default=1024, help="JPEGs to make")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=16, help="in a round")
    parser.add_argument("--only", help="contenders, by a regular expression")
    parser.add_argument("--variant", default="Ti/16", help="of the model that waits")
    parser.add_argument("--steps", type=int, default=20, help="0: no training")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.child:
        child(args.child, args.data_dir, args.batches)
    from vit_jax.data import TrainTransform

    root = args.data_dir or Path(tempfile.mkdtemp())
    prepare(root, args.images)
    names = [n for n in CONTENDERS if args.only is None or re.search(args.only, n)]
    if "augment" not in TrainTransform.__dataclass_fields__:
        names = [n for n in names if "RandAugment" not in n]
    print(f"{num_cores()} cores, {args.images} JPEGs, batch {BATCH}, {IMAGE_SIZE} px")
    compare(names, root, args.rounds, args.batches)
    if args.steps:
        waiting_share(root, args.variant, args.steps)


if __name__ == "__main__":
    main()
