import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_jax import data
from vit_jax.data import sampler
from vit_jax.data.transforms import (
    Draws,
    EvalTransform,
    TrainTransform,
    inception_box,
    resize,
)
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)


def photo(height: int, width: int) -> np.ndarray:
    """A smooth colour image, as a photo is: noise enlarged."""
    noise = RNG.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    )


def reference_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each side by a dense float64 matrix: areas when shrinking, else bilinear."""
    shrinks = all(new <= old for new, old in zip(size, image.shape, strict=False))
    rows, columns = (
        area_matrix(old, new) if shrinks else linear_matrix(old, new)
        for old, new in zip(image.shape, size, strict=False)
    )
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(np.float64))


def area_matrix(old: int, new: int) -> np.ndarray:
    edges = np.arange(new + 1) * old / new
    pixels = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(
        edges[:-1, None], pixels
    )
    return np.maximum(overlap, 0) * new / old


def linear_matrix(old: int, new: int) -> np.ndarray:
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((40, 60), (20, 20)),
        ((40, 60), (33, 17)),
        ((10, 12), (33, 40)),
        ((40, 60), (20, 80)),
        ((9, 9), (9, 9)),
    ],
)
def test_resize(old, new):
    """To one step of 255, which is rounding."""
    image = photo(*old)
    got = resize(image, new)
    assert got.shape == (*new, 3)
    assert got.dtype == np.uint8
    assert np.abs(got - reference_resize(image, new)).max() <= 1.01


@pytest.mark.parametrize(
    ("old", "new"),
    [((375, 500), (224, 224)), ((90, 70), (60, 64)), ((9, 12), (32, 20))],
)
def test_bilinear_is_tensorflows(old, new):
    """`tf.image.resize(image, size)`, to the rounding of 8 bits."""
    import tensorflow as tf

    image = photo(*old)
    got = resize(image, new, "bilinear")
    want = tf.image.resize(image, new).numpy()
    assert np.abs(got - want).max() <= 1.01
    rows, columns = (linear_matrix(o, n) for o, n in zip(old, new, strict=True))
    want = np.einsum("yh,hwc->ywc", rows, image.astype(np.float64))
    want = np.einsum("xw,ywc->yxc", columns, want)
    assert np.abs(got - want).max() <= 1.01


@pytest.mark.parametrize("crop", ["inception", "resize"])
def test_interpolation(crop):
    """The key does what it says, and only where both sides shrink."""
    image = RNG.integers(0, 256, (60, 80, 3), np.uint8)
    draws = TrainTransform(crop=crop).draw(0, np.arange(1)).row(0)

    def transformed(image, **keys):
        keys = {"crop": crop, "flip": False} | keys
        if crop == "inception":
            keys["area"] = (1.0, 1.0)
        return TrainTransform(**keys)(image, (30, 20), draws)

    area = transformed(image)
    np.testing.assert_array_equal(transformed(image, interpolation="area"), area)
    bilinear = transformed(image, interpolation="bilinear")
    assert np.abs(bilinear.astype(int) - area).mean() > 20
    small = image[:20, :15]
    np.testing.assert_array_equal(
        transformed(small, interpolation="bilinear"), transformed(small)
    )


def test_shrinking_agrees_with_pil():
    """PIL's box filter averages over areas, too."""
    image = photo(64, 96)
    want = np.asarray(
        Image.fromarray(image).resize((32, 16), Image.Resampling.BOX), int
    )
    assert np.abs(resize(image, (16, 32)) - want).max() <= 1


def reference_box(height, width, draws, area, ratio):
    """Torchvision's RandomResizedCrop.get_params, on given uniform numbers."""
    for i in range(10):
        target = height * width * (area[0] + draws[2 + 2 * i] * (area[1] - area[0]))
        log = np.log(ratio[0]) + draws[3 + 2 * i] * np.log(ratio[1] / ratio[0])
        w = int(np.round(np.sqrt(target * np.exp(log))))
        h = int(np.round(np.sqrt(target / np.exp(log))))
        if 0 < w <= width and 0 < h <= height:
            return (
                math.floor(draws[0] * (height - h + 1)),
                math.floor(draws[1] * (width - w + 1)),
                h,
                w,
            )
    return None


def test_inception_box_is_torchvisions():
    draws = sampler.uniforms(0, sampler.Stream.CROP, np.arange(3000), 22)
    sizes = np.random.default_rng(1).integers(10, 600, (3000, 2))
    retried = 0
    for (height, width), row in zip(sizes.tolist(), draws, strict=True):
        want = reference_box(height, width, row, (0.05, 1.0), (3 / 4, 4 / 3))
        if want is not None:
            assert inception_box(height, width, row) == want
        first = reference_box(height, width, row[:4].repeat(10), (0.05, 1), (0.75, 1.3))
        retried += first is None
    assert retried  # or the loop was not tested


def test_statistics_of_inception_boxes():
    """On a large image, share of area and aspect ratio follow their distributions."""
    n, side = 20_000, 10_000
    draws = sampler.uniforms(5, sampler.Stream.CROP, np.arange(n), 22)
    boxes = np.array([inception_box(side, side, row, area=(0.1, 0.5)) for row in draws])
    top, left, height, width = boxes.T.astype(float)
    assert (top + height).max() <= side
    assert (left + width).max() <= side
    share = height * width / side**2
    ratio = np.log(width / height) / math.log(4 / 3)
    error = 4 / math.sqrt(n)  # 4 standard errors, in standard deviations
    for values, low, high in ((share, 0.1, 0.5), (ratio, -1, 1)):
        assert values.min() >= low - 1e-3
        assert values.max() <= high + 1e-3
        spread = (high - low) / math.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < error * spread
        assert abs(values.std() - spread) < error * spread
    for place, free in ((top, side - height), (left, side - width)):
        where = place / free
        assert abs(where.mean() - 0.5) < error
        assert abs(np.corrcoef(where, share)[0, 1]) < error
    assert abs(np.corrcoef(share, ratio)[0, 1]) < error


@pytest.mark.parametrize(
    ("size", "want"), [((100, 1), (34, 0, 1, 1)), ((10, 100), (0, 43, 10, 13))]
)
def test_inception_box_falls_back_to_a_part_of_the_best_shape(size, want):
    draws = np.full(22, 0.5)
    got = inception_box(size[0], size[1], draws, area=(1.0, 1.0))
    assert got[2:] == want[2:]
    assert 0 <= got.top <= size[0] - got.height
    assert 0 <= got.left <= size[1] - got.width


def test_train_inception_against_pil():
    image = photo(100, 140)
    transform = TrainTransform(area=(0.3, 1.0), aspect_ratio=(0.8, 1.25))
    draws = transform.draw(3, np.arange(20))
    for i in range(20):
        box = reference_box(100, 140, draws.crop[i], (0.3, 1.0), (0.8, 1.25))
        assert box is not None
        top, left, height, width = box
        crop = image[top : top + height, left : left + width]
        if draws.flip[i]:
            crop = np.asarray(
                Image.fromarray(crop).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            )
        want = reference_resize(crop, (48, 32))
        got = transform(image, (48, 32), draws.row(i))
        assert np.abs(got - want).max() <= 1.01


def test_train_pad_against_a_shifted_image():
    image = photo(12, 16)
    transform = TrainTransform(crop="pad", padding=3)
    draws = transform.draw(0, np.arange(300))
    seen = set()
    for i in range(300):
        got = transform(image, (12, 16), draws.row(i))
        dy, dx = (int(7 * u) - 3 for u in draws.crop[i])
        want = np.zeros_like(image)
        for y in range(12):
            for x in range(16):
                if 0 <= y + dy < 12 and 0 <= x + dx < 16:
                    want[y, x] = image[y + dy, x + dx]
        if draws.flip[i]:
            want = np.fliplr(want)
        np.testing.assert_array_equal(got, want)
        seen.add((dy, dx))
    assert len(seen) == 49


def test_train_resize_and_none():
    image = photo(20, 30)
    no_flip = TrainTransform(crop="resize", flip=False)
    got = no_flip(image, (10, 10), no_flip.draw(0, np.arange(1)).row(0))
    assert np.abs(got - reference_resize(image, (10, 10))).max() <= 1.01
    none = TrainTransform(crop="none", flip=False)
    draws = none.draw(0, np.arange(1)).row(0)
    np.testing.assert_array_equal(none(image, (20, 30), draws), image)
    with pytest.raises(UserError, match=r'20 x 30, but .*crop="none" needs 20 x 20'):
        none(image, (20, 20), draws)


def test_flips():
    numbers = np.arange(20_000)
    flips = TrainTransform(crop="none").draw(0, numbers).flip
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(numbers))
    assert not TrainTransform(crop="none", flip=False).draw(0, numbers).flip.any()


TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_vertical_flips_and_quarter_turns_against_pil(channels):
    """One image at a time, and a whole batch: the same pixels as Pillow's."""
    image = RNG.integers(0, 256, (9, 9, channels), np.uint8)
    keys: dict[str, Any] = {"flip": True, "vertical_flip": True, "rotate90": True}
    transform = TrainTransform(crop="none", **keys)
    draws = transform.draw(5, np.arange(400))
    assert draws.vertical_flip is not None and draws.quarter_turns is not None
    batch = transform.call_batch(np.repeat(image[None], 400, axis=0), draws)
    seen = set()
    for i in range(400):
        how = bool(draws.flip[i]), bool(draws.vertical_flip[i])
        turns = int(draws.quarter_turns[i])
        picture = Image.fromarray(image.squeeze())
        if how[0]:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if how[1]:
            picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if turns:
            picture = picture.transpose(TURNS[turns])
        want = np.asarray(picture).reshape(9, 9, channels)
        np.testing.assert_array_equal(batch[i], want)
        if channels == 3:
            got = transform(image, (9, 9), draws.row(i))
            np.testing.assert_array_equal(got, want)
        seen.add((*how, turns))
    assert len(seen) == 16


def test_turns_are_uniform_and_of_the_example_alone():
    numbers = np.arange(20_000)
    plain = TrainTransform(crop="none")
    turning = TrainTransform(crop="none", vertical_flip=True, rotate90=True)
    draws, without = turning.draw(0, numbers), plain.draw(0, numbers)
    assert without.vertical_flip is None and without.quarter_turns is None
    np.testing.assert_array_equal(draws.flip, without.flip)  # as runs have had them
    assert draws.vertical_flip is not None and draws.quarter_turns is not None
    cells = draws.flip * 8 + draws.vertical_flip * 4 + draws.quarter_turns
    counts = np.bincount(cells, minlength=16)
    chi_square = ((counts - 1250) ** 2 / 1250).sum()
    assert chi_square < 37.7  # 15 degrees of freedom, p = 0.001
    some = turning.draw(0, numbers[7:9])
    np.testing.assert_array_equal(some.quarter_turns, draws.quarter_turns[7:9])
    np.testing.assert_array_equal(some.vertical_flip, draws.vertical_flip[7:9])


def test_images_that_are_turned_are_square():
    TrainTransform(rotate90=True).check_size((8, 8))
    TrainTransform(vertical_flip=True).check_size((8, 9))
    with pytest.raises(
        UserError, match=r"rotate90 needs a square image size, not \(8,"
    ):
        TrainTransform(rotate90=True).check_size((8, 9))
    with pytest.raises(UserError, match="rotate90 needs a square image size"):
        data.make(
            name="fashion_mnist_mini",
            image_size=(8, 9),
            train={"rotate90": True},
            eval={},
        )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "keys",
    [
        {"crop": "pad"},
        {"crop": "pad", "padding": 0},
        {"crop": "none"},
        {"crop": "resize"},
    ],
    ids=str,
)
def test_a_whole_batch_is_bit_for_bit_each_image(channels, keys):
    images = RNG.integers(0, 256, (64, 9, 7, channels), np.uint8)
    transform = TrainTransform(**keys)
    assert transform.batches((9, 7), (9, 7))
    draws = transform.draw(1, np.arange(64) + 10**6)
    got = transform.call_batch(images.copy(), draws)
    for i, image in enumerate(images):
        want = transform(np.repeat(image, 3 // channels, 2), (9, 7), draws.row(i))
        np.testing.assert_array_equal(np.repeat(got[i], 3 // channels, 2), want)


def test_when_whole_batches_are_possible():
    assert not TrainTransform(crop="inception").batches((8, 8), (8, 8))
    assert not TrainTransform(crop="pad").batches((9, 8), (8, 8))
    assert EvalTransform().batches((8, 8), (8, 8))
    assert not EvalTransform(resize=9).batches((8, 8), (8, 8))
    assert not EvalTransform().batches((9, 8), (8, 8))


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (33, 33), (10, 200)])
def test_eval_is_short_side_then_centre(size):
    image = photo(*size)
    got = EvalTransform(resize=32)(image, (28, 28))
    scale = 32 / min(size)
    whole = reference_resize(image, (round(size[0] * scale), round(size[1] * scale)))
    top, left = ((n - 28) // 2 for n in whole.shape[:2])
    want = whole[top : top + 28, left : left + 28]
    assert np.abs(got - want).max() <= 1.01


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (20, 15)])
@pytest.mark.parametrize("target", [(28, 28), (20, 40), (40, 20)])
def test_eval_without_resize_cuts_one_side_only(size, target):
    image = photo(*size)
    got = EvalTransform()(image, target)
    scale = max(target[0] / size[0], target[1] / size[1])
    new = round(size[0] * scale), round(size[1] * scale)
    assert target[0] == new[0] or target[1] == new[1]
    whole = reference_resize(image, new)
    top, left = ((n - t) // 2 for n, t in zip(new, target, strict=True))
    want = whole[top : top + target[0], left : left + target[1]]
    assert np.abs(got - want).max() <= 1.01


def test_eval_without_crop_shows_all():
    image = photo(50, 80)
    got = EvalTransform(crop="none")(image, (28, 28))
    assert np.abs(got - reference_resize(image, (28, 28))).max() <= 1.01


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop": "inceptoin"}, "expected one of inception, pad, resize, none"),
        ({"crop": "pad", "area": (0.1, 1.0)}, r'area=.* no effect .*crop="pad"'),
        ({"crop": "none", "padding": 4}, r'padding=4 has no effect .*crop="none"'),
        ({"crop": "inception", "padding": 4}, "padding=4 has no effect"),
        ({"crop": "resize", "aspect_ratio": (1.0, 1.0)}, "aspect_ratio"),
        ({"area": (0.5, 0.1)}, "low <= high"),
        ({"area": (0.0, 1.0)}, "0 < low"),
        ({"area": (0.5, 1.5)}, "<= 1"),
        ({"aspect_ratio": (0.0, 1.0)}, "0 < low"),
        ({"crop": "pad", "padding": -1}, "expected pixels, 0 to"),
        ({"interpolation": "cubic"}, "expected area or bilinear"),
        ({"crop": "pad", "interpolation": "area"}, "interpolation=area has no effect"),
    ],
    ids=str,
)
def test_bad_train_keys(keys, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(**keys)


def test_bad_eval_keys():
    with pytest.raises(UserError, match=r"resize=32 has no effect .*crop=.none"):
        EvalTransform(resize=32, crop="none")
    with pytest.raises(UserError, match="expected one of central, none"):
        EvalTransform(crop="center")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="resize=20 does not go with the image size"):
        EvalTransform(resize=20).check_size((28, 28))


def test_draws_of_a_row():
    draws = Draws(np.arange(4.0).reshape(2, 2), np.array([True, False]))
    assert draws.row(1).crop.tolist() == [2, 3]
    assert not draws.row(1).flip
