"""Augmentation as training has it: keys, order, and numbers that n alone decides."""

import hashlib
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data import pictures
from vit_jax.data import policies, sampler
from vit_jax.data.augmentation import Augment
from vit_jax.data.builder import BatchBuilder
from vit_jax.data.sources.arrays import ArraySource
from vit_jax.data.splits import Range
from vit_jax.data.transforms import TrainTransform
from vit_jax.errors import UserError

AUGMENTS: list[Augment] = [
    "randaugment",
    "randaugment_tf",
    "autoaugment",
    "trivialaugment",
    "three_augment",
]
PHOTO = pictures.photo(40, 52)


def make(**keys: Any) -> TrainTransform:
    return TrainTransform(**keys)


def augmented(image=PHOTO, n=16, **keys):
    """n examples of one image, neither cropped nor flipped."""
    transform = make(**{"crop": "none", "flip": False} | keys)
    draws = transform.draw(3, np.arange(n))
    size = image.shape[:2]
    return np.stack([transform(image, size, draws.row(i)) for i in range(n)])


def batches(images, batch_size, steps, **keys):
    source = ArraySource(
        [images],
        [np.arange(len(images))],
        ranges=[Range("train", 0, len(images))],
        name="images",
        num_classes=None,
    )
    build = BatchBuilder(
        source=source,
        transform=make(**{"crop": "none"} | keys),
        image_size=images.shape[1:3],
        batch_size=batch_size,
        rows=np.arange(batch_size),
        seed=3,
        num_threads=2,
    )
    return [build(step).batch for step in steps]


@pytest.mark.parametrize(
    "keys",
    [
        *({"augment": name} for name in AUGMENTS),
        {"augment": "randaugment", "num_layers": 3},
        {"augment": "randaugment", "magnitude": 20},
        {"augment": "randaugment", "fill": (1, 2, 3)},
        {"augment": "three_augment", "color_jitter": (0.0, 0.0, 0.0, 0.0)},
        {"color_jitter": (0.4, 0.0, 0.0, 0.0)},
        {"color_jitter": (0.0, 0.4, 0.0, 0.0)},
        {"color_jitter": (0.0, 0.0, 0.4, 0.0)},
        {"color_jitter": (0.0, 0.0, 0.0, 0.4)},
        {"erasing": 0.5},
        {"erasing": 0.5, "erasing_mode": "color"},
        {"erasing": 0.5, "erasing_mode": "const"},
    ],
    ids=str,
)
def test_every_key_has_an_effect(keys):
    """On the pixels, against the same without the last key."""
    less = dict(itertools.islice(keys.items(), len(keys) - 1))
    got, without = augmented(**keys), augmented(**less)
    assert got.dtype == np.uint8 and got.shape == without.shape
    assert (got != without).any()
    for name in AUGMENTS:
        if keys == {"augment": name}:
            assert all(
                (augmented(augment=a) != got).any() for a in AUGMENTS if a != name
            )


def test_defaults():
    for name, magnitude, fill in (
        ("randaugment", 9, (0, 0, 0)),
        ("randaugment_tf", 10, (128, 128, 128)),
    ):
        said = augmented(augment=name, num_layers=2, magnitude=magnitude, fill=fill)
        np.testing.assert_array_equal(augmented(augment=name), said)
    three = augmented(augment="three_augment", color_jitter=(0.3, 0.3, 0.3, 0.0))
    np.testing.assert_array_equal(augmented(augment="three_augment"), three)
    pixel = augmented(erasing=0.5, erasing_mode="pixel")
    np.testing.assert_array_equal(augmented(erasing=0.5), pixel)


def test_order():
    """Crop, flip, policy, jitter, erase; each redone by Pillow from its own draws."""
    transform = TrainTransform(
        crop="pad",
        padding=6,
        augment="three_augment",
        color_jitter=(0.4, 0.0, 0.0, 0.0),
        erasing=1.0,
        erasing_mode="const",
    )
    draws = transform.draw(0, np.arange(30))
    assert draws.augment is not None
    assert draws.jitter is not None and draws.erasing is not None
    seen = set()
    for i, row in enumerate(draws.augment):
        kind = ("grey", "solarize", "blur")[int(3 * row[0])]
        top, left = (int(13 * u) for u in draws.crop[i])
        image = np.pad(PHOTO, ((6, 6), (6, 6), (0, 0)))
        image = image[top : top + 40, left : left + 52]
        picture = Image.fromarray(image[:, ::-1] if draws.flip[i] else image)
        if kind == "grey":
            picture = ImageOps.grayscale(picture).convert("RGB")
        elif kind == "solarize":
            picture = ImageOps.solarize(picture)
        else:
            continue  # only near Pillow's
        factor = 0.6 + 0.8 * draws.jitter[i, 0]
        want = np.array(ImageEnhance.Brightness(picture).enhance(factor))
        got = transform(PHOTO, (40, 52), draws.row(i))
        box = policies.erasing_box(draws.erasing[i, 1:], (40, 52))
        assert box is not None
        want[box.top : box.top + box.height, box.left : box.left + box.width] = 128
        np.testing.assert_array_equal(got, want)
        seen.add((kind, bool(draws.flip[i])))
    assert len(seen) == 4


@pytest.mark.parametrize("mode", ["pixel", "color", "const"])
def test_erased_pixels(mode):
    black = np.zeros((64, 64, 3), np.uint8)
    n = 400
    erased = augmented(black, n, erasing=0.25, erasing_mode=mode)
    share = erased.any((1, 2, 3)).mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    values = [image[image.any(-1)] for image in erased if image.any()]
    colours = [len(np.unique(v, axis=0)) for v in values]
    if mode == "const":
        assert {tuple(c) for v in values for c in v.tolist()} == {(128, 128, 128)}
    elif mode == "color":
        assert set(colours) == {1}
        assert len({tuple(v[0]) for v in values}) == len(values)
    else:
        counts = np.bincount(np.concatenate(values).ravel(), minlength=256)
        expected = counts.sum() / 256
        # 255 degrees of freedom; black pixels of the noise are not told apart.
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * (2 * 255) ** 0.5
        assert min(colours) > 1


@pytest.mark.parametrize("augment", AUGMENTS)
def test_small_and_grey_images(augment):
    grey = np.repeat(pictures.photo(28, 28)[..., :1], 3, axis=2)
    got = augmented(grey, 60, augment=augment, color_jitter=(0.3, 0.3, 0.3, 0.1))
    fill = 128 if augment == "randaugment_tf" else 0
    assert (np.ptp(got, axis=-1) == 0).all(), fill  # grey stays grey
    for shape in ((1, 1), (1, 9), (2, 3)):
        tiny = pictures.photo(*shape)
        assert augmented(tiny, 40, augment=augment, erasing=1.0).shape == (
            40,
            *shape,
            3,
        )


def test_a_source_in_memory_is_left_alone():
    images = np.stack([pictures.photo(12, 10, i) for i in range(6)])
    before = images.copy()
    keys = {"augment": "randaugment", "erasing": 1.0, "flip": False}
    batches(images, 6, range(4), **keys)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_are_augmented_as_others(channels):
    """Not by the whole-batch path, which only crops and flips."""
    images = np.stack([pictures.photo(12, 12, i) for i in range(8)])[..., :channels]
    keys = {"crop": "pad", "augment": "trivialaugment", "erasing": 0.5}
    (batch,) = batches(images, 8, [5], **keys)
    transform = TrainTransform(**keys)
    assert not transform.batches((12, 12), (12, 12))
    draws = transform.draw(3, 40 + np.arange(8))
    for i, label in enumerate(batch["label"]):
        image = np.repeat(images[label], 3 // channels, axis=2)
        want = transform(image, (12, 12), draws.row(i))
        np.testing.assert_array_equal(batch["image"][i], want)


def test_a_row_depends_on_its_number_alone():
    transform = TrainTransform(
        augment="randaugment", color_jitter=(0.1, 0.2, 0.3, 0.0), erasing=0.5
    )
    some = transform.draw(9, np.array([5, 10**12, 7]))
    for i, n in enumerate((5, 10**12, 7)):
        alone = transform.draw(9, np.array([n])).row(0)
        for a, b in zip(some.row(i), alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_golden_draws():
    """An interface for as long as runs live: see `sampler`."""
    numbers = np.array([0, 1, 10**12])
    text = ""
    for stream in ("AUGMENT", "JITTER", "ERASING"):
        text += repr(sampler.uniforms(1, sampler.Stream[stream], numbers, 3).tolist())
    keys = sampler.example_keys(1, sampler.Stream.NOISE, numbers)
    text += repr([sampler.noise(key, 9).tolist() for key in keys])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN_DRAWS


GOLDEN_DRAWS = "b902b8b30dda08ff"


# --- repeats


@pytest.mark.parametrize(
    ("size", "repeats"), [(24, 3), (29, 3), (8, 2), (5, 4), (1, 3)]
)
def test_an_epoch_shows_each_record_k_times(size, repeats):
    whole = repeats * size
    for epoch in range(3):
        numbers = np.arange(epoch * whole, (epoch + 1) * whole)
        records = sampler.record_numbers(numbers, size, seed=1, repeats=repeats)
        assert np.bincount(records, minlength=size).tolist() == [repeats] * size


def test_repeats_follow_the_same_order_and_are_close_but_no_neighbours():
    size, repeats = 1000, 3
    once = sampler.record_numbers(np.arange(size), size, seed=1)
    records = sampler.record_numbers(np.arange(3 * size), size, seed=1, repeats=repeats)
    _, first = np.unique(records, return_index=True)
    np.testing.assert_array_equal(records[np.sort(first)], once)
    assert (records[1:] != records[:-1]).all()
    for record in range(size):
        places = np.flatnonzero(records == record)
        assert np.diff(places).tolist() == [8, 8]
    one = sampler.record_numbers(np.arange(5000), size, seed=1, repeats=1)
    np.testing.assert_array_equal(one[:1000], once)


def test_a_mixture_repeats_too():
    numbers, sizes = np.arange(1200), [30, 70]
    shares = [Fraction(1, 4), Fraction(3, 4)]
    once = sampler.mixture_record_numbers(numbers[:400], sizes, shares, seed=1)
    thrice = sampler.mixture_record_numbers(numbers, sizes, shares, seed=1, repeats=3)
    groups = thrice.reshape(-1, 3, 8)
    np.testing.assert_array_equal(groups, np.repeat(groups[:, :1], 3, axis=1))
    np.testing.assert_array_equal(groups[:, 0].ravel(), once)


def test_repeats_differ_in_their_augmentation():
    images = np.stack([pictures.photo(12, 12, i) for i in range(16)])
    (batch,) = batches(images, 48, [0], augment="randaugment", repeats=3)
    assert np.bincount(batch["label"]).tolist() == [3] * 16
    (plain,) = batches(images, 48, [0], augment="randaugment")
    assert np.bincount(plain["label"]).tolist() == [3] * 16  # three epochs
    assert plain["label"].tolist() != batch["label"].tolist()
    several = [
        len(np.unique(batch["image"][batch["label"] == r], axis=0)) for r in range(16)
    ]
    assert sum(several) > 40


# --- what is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augment": "randaugmnet"}, r'augment="randaugmnet"; .*randaugment'),
        ({"erasing": 0.5, "erasing_mode": "pixl"}, 'erasing_mode="pixl"; .*pixel'),
        ({"magnitude": 9}, r'magnitude=9 has no effect with .*augment="none"'),
        ({"augment": "autoaugment", "num_layers": 2}, "num_layers=2 has no effect"),
        ({"augment": "three_augment", "fill": (0, 0, 0)}, "fill=.* has no effect"),
        ({"erasing_mode": "pixel"}, "erasing_mode=pixel has no effect .*erasing=0"),
        ({"augment": "randaugment", "magnitude": 31}, r"magnitude=31; expected 0..30"),
        ({"augment": "randaugment", "magnitude": -1}, r"magnitude=-1; expected 0..30"),
        ({"augment": "randaugment", "num_layers": 0}, "num_layers=0; expected 1 to"),
        (
            {"augment": "randaugment", "num_layers": 10**6},
            "num_layers=1000000; expected 1 to 100",
        ),
        (
            {"augment": "autoaugment", "fill": (0, 0, 256)},
            "fill=.*expected .red",
        ),
        (
            {"color_jitter": (0.1, 0.1, -0.1, 0.0)},
            "jitter=.*expected .brightness",
        ),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.6)}, "color_jitter=.*hue 0.5 or less"),
        ({"erasing": 1.5}, "erasing=1.5; expected a probability"),
        ({"repeats": 0}, "repeats=0; expected 1 to"),
    ],
    ids=str,
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(**keys)


def test_existing_configs_draw_nothing_more():
    draws = TrainTransform().draw(0, np.arange(4))
    assert draws[2:] == (None,) * 6
