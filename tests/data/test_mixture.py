"""Mixtures: exact shares, every part in epochs of its own, nothing but (seed, n)."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_sampler import MASK, reference_bits
from vit_jax import config, data
from vit_jax.data import sampler
from vit_jax.errors import UserError
from vit_jax.run import Run

HALVES = [Fraction(1, 2)] * 2
# Whose denominators multiply to more than 2**50.
LARGE = [Fraction(999_983, 3_999_949), Fraction(250_007, 999_979)]
LARGE = [*LARGE, Fraction(100_003, 999_961)]
LARGE = [*LARGE, 1 - sum(LARGE)]
SHARES = [
    HALVES,
    [Fraction(1, 10), Fraction(9, 10)],
    [Fraction(9, 10), Fraction(1, 10)],
    [Fraction(7, 10), Fraction(1, 5), Fraction(1, 10)],
    [Fraction(1, 7)] * 7,
    [Fraction(1, 1_000_000), Fraction(999_999, 1_000_000)],
    LARGE,
    [Fraction(1)],
]

GOLDEN_PARTS = [0, 2, 1, 1, 0, 2, 1, 1, 0, 1, 2, 0, 1, 1, 0, 2, 1, 1, 1, 0]
GOLDEN_RECORDS = [5, 1, 11, 3, 0, 4, 10, 6, 2, 7]


def reference_parts(
    count: int, shares: list[Fraction], seed: int
) -> list[tuple[int, int]]:
    """(part, number in the part) of examples 0 .. count-1, one cell after the other."""
    key = reference_bits(seed & MASK, 32)
    left, found, rest = list(range(count)), [(-1, -1)] * count, Fraction(1)
    for part, share in enumerate(shares):
        chosen = list(range(len(left)))
        if part < len(shares) - 1:
            chosen = cells(len(left), rest / share, reference_bits(key, part))
        for number, place in enumerate(chosen):
            found[left[place]] = (part, number)
        left = [n for place, n in enumerate(left) if place not in chosen]
        rest -= share
    return found


def cells(count: int, step: Fraction, key: int) -> list[int]:
    """A random number of each cell of `step` numbers, while it is below `count`."""
    chosen = []
    for cell in range(count):
        begin, end = math.ceil(cell * step), math.ceil((cell + 1) * step)
        place = begin + ((reference_bits(key, cell) >> 32) * (end - begin) >> 32)
        if place < count:
            chosen.append(place)
    return chosen


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("seed", [0, 2**70 + 5])
def test_parts_are_the_reference(shares, seed):
    part, number = sampler.mixture_parts(np.arange(300), shares, seed=seed)
    got = list(zip(part.tolist(), number.tolist(), strict=True))
    assert got == reference_parts(300, shares, seed)


def test_golden_mixture():
    """An interface: a run that is resumed next year needs these same numbers."""
    shares = [Fraction(3, 10), Fraction(1, 2), Fraction(1, 5)]
    part, _ = sampler.mixture_parts(np.arange(20), shares, seed=0)
    assert part.tolist() == GOLDEN_PARTS
    records = sampler.mixture_record_numbers(np.arange(10), [3, 5, 4], shares, seed=42)
    assert records.tolist() == GOLDEN_RECORDS


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_shares_are_exact_at_any_time(shares):
    """From the start to within k - 1 examples, anywhere to within 2 (k - 1)."""
    count, others = 20_000, len(shares) - 1
    part, _ = sampler.mixture_parts(np.arange(count), shares, seed=3)
    for i, share in enumerate(shares):
        given = np.concatenate([[0], np.cumsum(part == i)])
        more = given - np.arange(count + 1) * float(share)
        assert np.abs(more).max() <= others + 1e-6
        assert more.max() - more.min() <= 2 * others + 1e-6  # the worst of all windows


def test_shares_of_large_denominators_far_into_a_run():
    """Nothing overflows: numbers within a part are what its share says."""
    shares, start = LARGE, 10**12
    part, number = sampler.mixture_parts(start + np.arange(5000), shares, seed=4)
    for i, share in enumerate(shares):
        mine = np.flatnonzero(part == i)
        want = (start + mine) * float(share)
        assert np.abs(number[mine] - want).max(initial=0) < 3
        assert np.array_equal(np.diff(number[mine]), np.ones(max(len(mine) - 1, 0)))


def test_shares_far_into_a_run():
    start = 10**12
    part, number = sampler.mixture_parts(
        start + np.arange(1000), [Fraction(3, 10), Fraction(7, 10)], seed=0
    )
    assert abs(np.count_nonzero(part == 0) - 300) <= 2
    assert abs(number[part == 0][0] - 3 * start // 10) <= 1
    assert np.array_equal(np.diff(number[part == 0]), np.ones((part == 0).sum() - 1))


def test_places_are_random():
    """A regular pattern would always put the same part into the same row."""
    part, _ = sampler.mixture_parts(np.arange(40_000), HALVES, seed=1)
    firsts = part.reshape(-1, 2)[:, 0]  # one of each pair, at random
    assert abs(firsts.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(firsts))
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 4 / np.sqrt(len(firsts))
    other, _ = sampler.mixture_parts(np.arange(40_000), HALVES, seed=2)
    assert abs(np.corrcoef(part, other)[0, 1]) < 4 / np.sqrt(len(firsts))


def test_each_part_has_epochs_of_its_own():
    sizes = [7, 100, 31]
    shares = [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]
    records = sampler.mixture_record_numbers(np.arange(2000), sizes, shares, seed=5)
    first = 0
    orders = []
    for size in sizes:
        of_part = records[(records >= first) & (records < first + size)] - first
        epochs = of_part[: len(of_part) // size * size].reshape(-1, size)
        assert len(epochs) >= 6
        for epoch in epochs:
            assert np.array_equal(np.sort(epoch), np.arange(size))
        assert not np.array_equal(epochs[0], epochs[1])
        orders.append(epochs)
        first += size


def test_parts_of_one_size_have_different_orders():
    records = sampler.mixture_record_numbers(
        np.arange(2000), [500, 500], HALVES, seed=0
    )
    one, two = records[records < 500][:500], records[records >= 500][:500] - 500
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(500)


def test_a_number_alone_is_as_among_others():
    shares, sizes = SHARES[3], [50, 20, 10]
    numbers = np.array([999, 3, 10**11, 0, 500])
    together = sampler.mixture_record_numbers(numbers, sizes, shares, seed=9)
    for i in range(len(numbers)):
        alone = sampler.mixture_record_numbers(
            numbers[i : i + 1], sizes, shares, seed=9
        )
        assert alone[0] == together[i]


# --- through make()


def write_npz(path: Path, count: int, start: int, classes: int = 4) -> str:
    """Images of one colour each, which is the record's identity."""
    images = np.zeros((count, 8, 8, 3), np.uint8)
    images[:] = np.arange(start, start + count).astype(np.uint8)[:, None, None, None]
    labels = np.arange(count) % classes
    np.savez(path, x_train=images, y_train=labels)
    return str(path)


@pytest.fixture
def sets(tmp_path) -> dict[str, dict[str, Any]]:
    return {
        "a": {"name": "npz", "data_dir": write_npz(tmp_path / "a.npz", 30, 0)},
        "b": {
            "name": "npz",
            "data_dir": write_npz(tmp_path / "b.npz", 40, 100),
            "weight": 3.0,
        },
    }


def made(sets: dict[str, Any], **keys: Any) -> data.Dataset:
    section = {
        "name": "mixture",
        "mixture": sets,
        "image_size": 8,
        "train": {"crop": "none"},
        "eval": {},
    }
    return data.make(**{**section, **keys})


def batches(dataset: data.Dataset, **keys: Any) -> list[data.Batch]:
    section = {"batch_size": 16, "seed": 0, "start_step": 0, "total_steps": 6}
    return list(dataset.train_batches(**{**section, **keys}))


def identities(got: list[data.Batch]) -> np.ndarray:
    return np.concatenate([b["image"][:, 0, 0, 0] for b in got])


def test_batches_of_a_mixture(sets):
    dataset = made(sets)
    assert dataset.num_examples == 70
    got = identities(batches(dataset))
    assert abs(np.count_nonzero(got < 100) - 96 / 4) <= 1
    order = got[got >= 100]
    assert np.array_equal(np.sort(order[:40]), np.arange(100, 140))
    labels = np.concatenate([b["label"] for b in batches(dataset)])
    want = np.where(got < 100, got, got.astype(int) - 100) % 4
    np.testing.assert_array_equal(labels, want)


def test_a_mixture_is_the_same_however_it_is_built(sets):
    dataset = made(sets)
    whole = identities(batches(dataset))
    np.testing.assert_array_equal(
        identities(batches(dataset, batch_size=8, total_steps=12)), whole
    )
    np.testing.assert_array_equal(  # resumed
        identities(batches(dataset, start_step=4)), whole[64:]
    )
    rows = np.array([3, 15, 0])  # of one host
    few = identities(batches(dataset, rows=rows)).reshape(6, 3)
    np.testing.assert_array_equal(few, whole.reshape(6, 16)[:, rows])
    assert not np.array_equal(identities(batches(dataset, seed=1)), whole)


def test_a_mixture_in_worker_processes(sets):
    whole = identities(batches(made(sets)))
    np.testing.assert_array_equal(identities(batches(made(sets, num_workers=1))), whole)


def test_what_a_mixture_is_known_by(sets):
    one = made(sets).fingerprint
    heavier = {**sets, "a": {**sets["a"], "weight": 2.0}}
    less = {**sets, "a": {**sets["a"], "split": "train[:29]"}}
    renamed = {"first": sets["a"], "second": sets["b"]}
    assert one == made(renamed).fingerprint
    assert len({one, made(heavier).fingerprint, made(less).fingerprint}) == 3


def test_parts_take_what_they_do_not_say(sets, tmp_path):
    path = sets["a"].pop("data_dir")
    dataset = made(sets, data_dir=path, split="train[:20]")
    assert dataset.num_examples == 20 + 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0.0}, r"mixture.a.weight is 0.0: it should be a number above 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": 1e-9}, "weight is 1e-09"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": 1e7}, r"mixture.b.weight is 3.0: .* 1,000,000th of all"),
        ({"data_dir": None}, "needs config.data.data_dir"),
        ({"name": "mixture"}, "not within a mixture"),
        ({"label_key": "l"}, "no effect"),
    ],
)
def test_parts_that_cannot_be(sets, change, message):
    sets["a"] |= change
    with pytest.raises(UserError, match=message):
        made(sets)


def write_folder(root: Path, *names: str, shade: int, count: int = 5) -> dict[str, str]:
    """Pictures of one grey a class: `shade` more than twenty times its place here."""
    for i, name in enumerate(names):
        (root / "train" / name).mkdir(parents=True)
        for j in range(count):
            pixels = np.full((8, 8), shade + 20 * i, np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{j}.png")
    return {"name": "folder", "data_dir": str(root)}


def test_parts_with_other_labels(sets, tmp_path):
    ten = {"name": "fashion_mnist_mini"}
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.eye(4, 10)
    np.savez(tmp_path / "hot.npz", x_train=images, y_train=labels)
    hot = {"name": "npz", "data_dir": str(tmp_path / "hot.npz")}
    with pytest.raises(UserError, match=r"class numbers of 10 .*vectors of 10 classes"):
        made({"x": ten, "y": hot})
    both = made({"x": hot, "y": hot})
    assert both.label_classes == 10
    assert batches(both)[0]["label"].shape == (16, 10)
    (note,) = both.source.notes
    assert "the classes of y are taken for those of x by number (neither" in note


@pytest.mark.parametrize("first", ["a", "z"])  # whichever part comes first
def test_classes_of_parts_go_by_name(first, tmp_path):
    """Each colour has the label of its name, wherever that stands among the others."""
    names = ("cow", "dog", "owl", "ant")  # of folders, which are sorted
    all_four = write_folder(tmp_path / "four", *names, shade=10)
    two = write_folder(tmp_path / "two", "Dog", "owl", shade=130)
    parts = {first: all_four, "m": two}
    dataset = made(parts)
    classes = dataset.label_names or ()
    assert classes == ("ant", "cow", "dog", "owl")
    assert dataset.num_classes == 4
    (note,) = dataset.source.notes
    assert f"the classes of m have other numbers in {first}: they are matched" in note
    by_name = {10: "cow", 30: "dog", 50: "owl", 70: "ant", 130: "dog", 150: "owl"}
    seen = set()
    for batch in batches(dataset):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            grey = int(image[0, 0, 0])
            seen.add(grey)
            assert classes[label] == by_name[grey]
    assert seen == set(by_name)
    known = dataset.source.labels()
    assert known is not None and sorted(np.bincount(known)) == [5, 5, 10, 10]
    same = made({first: all_four, "m": all_four})
    assert same.source.notes == ()
    # Other numbers are other data: a checkpoint of the one is refused for the other.
    (tmp_path / "four" / "train" / "ant").rename(tmp_path / "four" / "train" / "zebra")
    assert made(parts).fingerprint != dataset.fingerprint


def test_classes_of_parts_that_are_unknown_or_have_no_names(tmp_path):
    one = write_folder(tmp_path / "one", "cat", "dog", "owl", shade=0)
    two = write_folder(tmp_path / "two", "cat", "emu", shade=0)
    with pytest.raises(UserError, match='does not know: "emu"; it knows "cat"'):
        made({"m": two, "n": one})
    ten = {"name": "fashion_mnist_mini"}
    with pytest.raises(
        UserError, match=r'\(.*one\) has classes .* "cat", "dog", "owl"'
    ):
        made({"x": ten, "y": one})
    three = write_folder(tmp_path / "three", "0", "1", "2", shade=0)
    (note,) = made({"m": three, "n": one}).source.notes
    assert 'by number ("cat" and "0" cannot be compared)' in note
    with pytest.raises(UserError, match=r"of 10 classes, .* of 3 classes; all parts"):
        made({"x": ten, "y": three})


def test_a_mixture_is_no_evaluation(sets):
    with pytest.raises(UserError, match="for training: an evaluation needs"):
        made(sets).check(num_classes=4, train=False, batch_size=4)
    with pytest.raises(UserError, match='"mixture" needs parts'):
        made({})


# --- from a config


RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.data = {
        "name": "mixture", "image_size": 8, "train": {"crop": "none"},
        "mixture": {
            "a": {"name": "npz", "data_dir": "%s/a.npz"},
            "b": {"name": "npz", "data_dir": "%s/b.npz", "weight": 3.0},
        },
    }
    config.model.update({"patch_size": 4, "num_classes": 10})
    config.evals = {"test": {"data": {"name": "fashion_mnist_mini"}}}
    config.batch_size, config.total_epochs, config.optim.warmup_steps = 16, 2.0, 2
    return config
"""


def load(tmp_path: Path, *overrides: tuple[str, str]) -> dict[str, Any]:
    recipe = tmp_path / "mixed.py"
    recipe.write_text(RECIPE % (tmp_path, tmp_path))
    return config.load(str(recipe), overrides).to_dict()


def test_a_run_of_a_mixture(sets, tmp_path):
    run = Run(**load(tmp_path))
    assert run.dataset.num_examples == 70
    assert run.total_steps == 9  # ceil(2 * 70 / 16)
    run.check_data()


def test_keys_of_a_mixture(sets, tmp_path):
    section = load(tmp_path, ("data.mixture.a.weight", "0.5"))["data"]
    assert section["mixture"]["a"]["weight"] == 0.5
    assert section["mixture"]["b"]["weight"] == 3.0
    for key, text, message in (
        ("data.mixture.a.wieght", "1", 'not a key; did you mean "weight"'),
        (
            "data.mixture.c.weight",
            "1",
            "there is no config.data.mixture.c; valid names: a, b",
        ),
        ("data.mixture.a", "1", "is a section"),
        ("data.mixture.a.weight", "many", "should be a float"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path, (key, text))
    with pytest.raises(UserError, match=r'mixture has no effect .*name="fashion'):
        Run(**load(tmp_path, ("data.name", "fashion_mnist_mini")))
