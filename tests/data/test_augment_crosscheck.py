"""Policies and operations against torchvision's and timm's, on the same choices."""

import importlib
import random
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from tests.data import pictures
from vit_jax.data import policies, sampler
from vit_jax.data.augmentation import Augment
from vit_jax.data.sampler import Stream
from vit_jax.data.transforms import TrainTransform

pytestmark = pytest.mark.crosscheck

SIZE = (96, 128)
NAMES = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "color",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
}


def draws_of(name: Augment, n: int) -> np.ndarray:
    _, count = policies.make(name, num_layers=2, magnitude=9)
    return sampler.uniforms(0, Stream.AUGMENT, np.arange(n), count)


def ours(name: Augment, image: np.ndarray, row: np.ndarray, **keys) -> np.ndarray:
    policy, _ = policies.make(name, **{"num_layers": 2, "magnitude": 9} | keys)
    return policies.apply(image, policy(row, image.shape[:2]), (9, 8, 7))


class Script:
    """Answers torch's random functions with given uniform numbers, in order."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def randint(self, low, *rest, **_):
        torch = importlib.import_module("torch")

        high = low if len(rest) == 1 else rest[0]
        return torch.tensor([int(self.numbers.pop(0) * high)])

    def patched(self):
        torch = importlib.import_module("torch")

        return mock.patch.object(torch, "randint", self.randint)


@pytest.mark.parametrize("magnitude", [0, 5, 9, 10, 17, 30])
def test_randaugment_is_torchvisions(magnitude):
    RandAugment = importlib.import_module("torchvision.transforms").RandAugment

    theirs = RandAugment(2, magnitude, 31, fill=[9, 8, 7])
    ops = list(theirs._augmentation_space(31, SIZE))
    signed = [bool(s) for _, s in theirs._augmentation_space(31, SIZE).values()]
    assert [NAMES[op] for op in ops] == [
        n for n in policies._amounts(9, 30, SIZE) if n != "invert"
    ]
    for i, row in enumerate(draws_of("randaugment", 300)):
        image = pictures.photo(*SIZE, seed=i)
        answers = []
        for operation, sign in row.reshape(2, 2):
            answers.append(operation)
            if signed[int(operation * len(ops))]:
                answers.append(0.9 if sign < 0.5 else 0.1)  # 1 negates
        with Script(answers).patched():
            want = np.asarray(theirs(Image.fromarray(image)))
        np.testing.assert_array_equal(
            ours("randaugment", image, row, magnitude=magnitude), want
        )


def test_trivialaugment_is_torchvisions():
    TrivialAugmentWide = importlib.import_module(
        "torchvision.transforms"
    ).TrivialAugmentWide

    theirs = TrivialAugmentWide(31, fill=[9, 8, 7])
    space = theirs._augmentation_space(31)
    for i, row in enumerate(draws_of("trivialaugment", 600)):
        image = pictures.photo(*SIZE, seed=i)
        operation, magnitude, sign = row
        values, signed = list(space.values())[int(operation * len(space))]
        answers = [operation]
        if values.ndim:
            answers.append(magnitude)
        if signed:
            answers.append(0.9 if sign < 0.5 else 0.1)
        with Script(answers).patched():
            want = np.asarray(theirs(Image.fromarray(image)))
        np.testing.assert_array_equal(ours("trivialaugment", image, row), want)


def test_autoaugment_is_torchvisions():
    torch = importlib.import_module("torch")
    AutoAugment = importlib.import_module("torchvision.transforms").AutoAugment

    theirs = AutoAugment(fill=[9, 8, 7])
    assert len(theirs.policies) == len(policies._IMAGENET)
    for i, row in enumerate(draws_of("autoaugment", 400)):
        image = pictures.photo(*SIZE, seed=i)
        chosen, *each = row.tolist()
        given = (
            int(chosen * 25),
            torch.tensor(each[0::2], dtype=torch.float64),
            torch.tensor([int(sign >= 0.5) for sign in each[1::2]]),
        )
        with mock.patch.object(theirs, "get_params", lambda _, g=given: g):
            want = np.asarray(theirs(Image.fromarray(image)))
        np.testing.assert_array_equal(ours("autoaugment", image, row), want)


def test_color_jitter_is_torchvisions():
    torch = importlib.import_module("torch")
    ColorJitter = importlib.import_module("torchvision.transforms").ColorJitter

    jitter = (0.4, 0.3, 0.2, 0.0)
    theirs = ColorJitter(*jitter)
    for i, row in enumerate(sampler.uniforms(0, Stream.JITTER, np.arange(200), 8)):
        image = pictures.photo(*SIZE, seed=i)
        factors = [1 - x + 2 * x * u for x, u in zip(jitter, row, strict=False)]
        given = (torch.tensor(np.argsort(row[4:])), *factors[:3], None)
        with mock.patch.object(theirs, "get_params", lambda *_, g=given: g):
            want = np.asarray(theirs(Image.fromarray(image)))
        steps = policies.color_jitter(row, jitter)
        got = policies.apply(image, steps, (0, 0, 0))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("turns", [-0.3, 0.1, 0.5])
def test_hue_is_near_torchvisions(turns):
    torch = importlib.import_module("torch")
    functional = importlib.import_module("torchvision.transforms.functional")

    from vit_jax.data import augment

    image = pictures.photo(*SIZE)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    want = functional.adjust_hue(tensor, turns).permute(1, 2, 0).numpy().astype(int)
    got = augment.shift_hue(image, turns)
    assert np.abs(got - want).max() <= 2
    pil = np.asarray(functional.adjust_hue(Image.fromarray(image), turns)).astype(int)
    assert np.abs(got - pil).max() <= 16


def test_three_augment_is_timms():
    """timm's own "3a" policy, whose blur is Pillow's."""
    auto_augment = importlib.import_module("timm.data.auto_augment")

    ops = auto_augment.auto_augment_policy_3a({})
    found = sorted(op.name for (op,) in ops)
    assert found == ["Desaturate", "GaussianBlurRand", "Solarize"]
    image = pictures.photo(*SIZE)
    for (op,) in ops:
        chosen = {"S": 0.5, "D": 0.1, "G": 0.9}[op.name[0]]
        with mock.patch.object(random, "uniform", lambda a, b: a + 0.37 * (b - a)):
            want = np.asarray(op(Image.fromarray(image))).astype(int)
        got = ours("three_augment", image, np.array([chosen, 0.37]))
        assert np.abs(got - want).max() <= (2 if op.name[0] == "G" else 0)


def test_random_erasing_is_timms():
    """The same boxes from the same numbers; timm erases tensors."""
    torch = importlib.import_module("torch")
    RandomErasing = importlib.import_module("timm.data.random_erasing").RandomErasing

    transform = TrainTransform(
        crop="none", flip=False, erasing=0.6, erasing_mode="const"
    )
    draws = transform.draw(0, np.arange(300))
    assert draws.erasing is not None
    theirs = RandomErasing(0.6, mode="const", device="cpu")
    ones = np.ones((*SIZE, 3), np.uint8)
    seen = 0
    for i, row in enumerate(draws.erasing.tolist()):
        attempts = list(row[3:])

        def uniform(low, high, attempts=attempts):
            return low + attempts.pop(0) * (high - low)

        places = row[1:3]

        def randint(low, high, places=places):
            return low + int(places.pop(0) * (high - low + 1))

        with (
            mock.patch.object(random, "random", lambda r=row: r[0]),
            mock.patch.object(random, "uniform", uniform),
            mock.patch.object(
                random,
                "randint",
                lambda a, b, p=places: a + int(p.pop(0) * (b - a + 1)),
            ),
        ):
            want = theirs(torch.ones(3, *SIZE))[0].numpy() == 0
        got = transform(ones, SIZE, draws.row(i))[..., 0] == 128
        np.testing.assert_array_equal(got, want)
        seen += want.any()
    assert 100 < seen < 250
