"""Images from disk or memory to batches of uint8, as a function of (seed, step).

Importing this package imports neither grain nor TensorFlow.
"""

from collections.abc import Sequence
from typing import Any, Literal

from vit_jax import limits
from vit_jax.data import pipeline
from vit_jax.data.builder import Batch
from vit_jax.data.dataset import Dataset
from vit_jax.data.decode import to_rgb
from vit_jax.data.pipeline import Skipped
from vit_jax.data.sources import Source, open_source
from vit_jax.data.sources.mixture import open_mixture
from vit_jax.data.transforms import EvalTransform, TrainTransform
from vit_jax.errors import UserError

__all__ = [
    "Batch",
    "Dataset",
    "EvalTransform",
    "Skipped",
    "Source",
    "TrainTransform",
    "make",
    "to_rgb",
]

_NO_PARTS: dict[str, Any] = {}
# No values in [0, 1] deviate more than 0.5; 1 is how the scaling is left out.
_MAX_STD = 1.0
# A quarter of the step between two grey values of 8 bits: less is a slip.
_MIN_STD = 1e-3


def make(
    *,
    name: str,
    data_dir: str | None = None,
    split: str = "train",
    image_size: int | tuple[int, int] = 224,
    image_key: str | None = None,
    label_key: str | None = None,
    holdout: float | None = None,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    num_workers: int | None = None,
    num_threads: int | None = None,
    on_bad_example: Literal["error", "skip"] = "error",
    max_bad_examples: int | None = None,
    max_pixels: int = limits.IMAGE_PIXELS,
    mixture: dict[str, Any] = _NO_PARTS,
    train: dict[str, Any],
    eval: dict[str, Any],  # the name of the config's section
) -> Dataset:
    """Opens a split of a dataset.

    Args:
        name: a dataset of docs/datasets.md or any other that TFDS has prepared under
            data_dir, such as "imagenet2012", "imagenet2012:5.1.0", "vtab/dtd" or
            "imagenet_v2/topimages", as tfrecord or array_record. Or "folder", images
            in data_dir/SPLIT/CLASS/ or data_dir/CLASS/; "idx", the files of MNIST;
            "npz", a NumPy archive; "array_record", files of records that have no
            dataset_info.json. Or "mixture", several of these.
        data_dir: where it lies; for "npz" the file itself. For TFDS the default is
            $TFDS_DATA_DIR, else ~/tensorflow_datasets; the dataset's own folder, the
            one with dataset_info.json, may be given too.
        split: such as "train", "train[:99%]", "test[10%:20%]", "train+validation",
            with the rounding of TFDS; for vtab/NAME also "train800", "val200",
            "train800val200" and its "test".
        image_size: of the batches, pixels: one side of a square, or (height, width).
        image_key: the image's name in a TFDS dataset; default: as the catalog says,
            else "image".
        label_key: the label's; default: as the catalog says, else "label".
        holdout: share of each class of the training images that is not "train" but
            "test", chosen by the images' names; for "folder", "idx" and "npz" that
            have no test split. Default: 0.1 where an evaluation of the config asks
            for a test split and there is none, else nothing is held out.
        mean: of the channels of pixels in [0, 1], for the normalisation on the device.
        std: likewise; above 0.
        num_workers: processes that build batches beside this one; default: none,
            except for image files on machines with many cores.
        num_threads: threads that read images in each process; default: from the cores.
        on_bad_example: what happens to a record that does not decode or whose label is
            out of range: "error" ends the run; "skip" leaves it out of the loss and of
            the results, which count it. Files that are missing or cut always end it.
        max_bad_examples: with "skip", the run ends when more examples than this were
            left out, each counted as often as it was shown; default: 100, or one in
            a hundred of those shown so far, where that is more.
        max_pixels: of an image: one with more is a bad example, told by its header, so
            that a small file cannot take all memory; the default is Pillow's limit.
        mixture: {NAME: keyword arguments of `sources.mixture.open_part`}, the parts of
            name="mixture"; each gives its share of the examples, at places and in an
            order that depend on the seed alone, in epochs of its own.
        train: keyword arguments of `TrainTransform`.
        eval: keyword arguments of `EvalTransform`.

    Raises:
        UserError: whatever is missing, broken or contradictory.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if len(size) != 2 or not 1 <= min(size) <= max(size) <= limits.IMAGE_SIDE:
        raise UserError(
            f"config.data.image_size={image_size}; expected pixels, or (height, "
            f"width), 1 to {limits.IMAGE_SIDE:,}."
        )
    for key, value, least, most in (
        ("num_workers", num_workers, 0, limits.WORKERS),
        ("num_threads", num_threads, 1, limits.WORKERS),
        ("max_bad_examples", max_bad_examples, 0, 2**31),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(
                f"config.data.{key}={value}; expected {least} to {most:,}, or None."
            )
    if not 1 <= max_pixels <= limits.MOST_IMAGE_PIXELS:
        raise UserError(
            f"config.data.max_pixels={max_pixels}; expected 1 to "
            f"{limits.MOST_IMAGE_PIXELS:,}, which is what the decoder takes."
        )
    _check_normalization(mean, std)
    if on_bad_example not in ("error", "skip"):
        raise UserError(
            f'config.data.on_bad_example="{on_bad_example}"; expected one of error, '
            "skip."
        )
    if on_bad_example == "error" and max_bad_examples is not None:
        raise UserError(
            f"config.data.max_bad_examples={max_bad_examples} has no effect with "
            'config.data.on_bad_example="error"; set it to None, or choose "skip".'
        )
    train_transform, eval_transform = TrainTransform(**train), EvalTransform(**eval)
    train_transform.check_size(size)
    eval_transform.check_size(size)
    if name == "mixture" and (image_key, label_key, holdout) == (None, None, None):
        source = open_mixture(
            mixture, data_dir=data_dir, split=split, max_pixels=max_pixels
        )
    else:
        source = open_source(
            name=name,
            data_dir=data_dir,
            split=split,
            image_key=image_key,
            label_key=label_key,
            held_out=holdout,
            max_pixels=max_pixels,
        )
    workers, threads = pipeline.parallelism(in_memory=source.in_memory)
    return Dataset(
        source=source,
        image_size=size,
        mean=mean,
        std=std,
        num_workers=workers if num_workers is None else num_workers,
        num_threads=threads if num_threads is None else num_threads,
        train=train_transform,
        eval=eval_transform,
        skip_bad=on_bad_example == "skip",
        max_bad_examples=max_bad_examples,
    )


def _check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuses what cannot be the mean and the deviation of pixels in [0, 1].

    >>> _check_normalization((0.5, 0.5, 0.5), (58.4, 57.1, 57.4))
    Traceback (most recent call last):
      ...
    vit_jax.errors.UserError: config.data.std=(58.4, 57.1, 57.4): ...
    """
    for key, values, possible in (
        ("mean", mean, all(0 <= x <= 1 for x in mean)),
        ("std", std, all(_MIN_STD <= x <= _MAX_STD for x in std)),
    ):
        if possible:
            continue
        hint = ""
        if all(1 < x <= 255 for x in values):
            scaled = ",".join(f"{x / 255:.3f}" for x in values)
            hint = (
                f"; these look like values for 0..255: set config.data.{key}={scaled}"
            )
        expected = "in 0..1" if key == "mean" else f"{_MIN_STD:g} to {_MAX_STD:g}"
        raise UserError(
            f"config.data.{key}={tuple(values)}: it is for pixels in 0..1, so each "
            f"number should be {expected}{hint}."
        )
