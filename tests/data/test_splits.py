import pytest
import tensorflow_datasets as tfds

from vit_jax.data import splits
from vit_jax.errors import UserError

SIZES = {"train": 1234, "test": 101, "extra-unlabelled": 7}

EXPRESSIONS = [
    *("train", "test", "extra-unlabelled", "train+test", "train + test[:50%]"),
    *("train[:99%]", "train[99%:]", "train[5000:]", "train[1000:]", "test[10%:20%]"),
    *("train[-10%:]", "train[:-10%]", "train[-100:]", "train[:-1]", "train[-5:-2]"),
    *("test[:0.5%]", "test[33.3%:66.6%]", "test[:1%]", "test[2%:3%]", "train[:1_000]"),
    *("train[0:1]", "train[1:1]", "train[20:10]", "train[50%:50%]", "test[:101%]"),
    *("train[:2000]", "train[-2000:]", "train[0%:100%]", "test[:-102]", "train[:0]"),
    *("train[0:]", "train[:1234]", "validation", "train[]", "train[:]", "train[a:b]"),
    *("train[5]", "train[5%]", "", "train[", "train[1:2:3]", "train+", "train[1.5:]"),
    *(f"test[{k}%:{k + 1}%]" for k in range(0, 100, 7)),
]


def by_tfds(split: str) -> list[tuple[str, int, int]]:
    """What TFDS's own ReadInstruction makes of it; ValueError where it refuses."""
    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[size], num_bytes=0, filename_template=None
        )
        for name, size in SIZES.items()
    }
    try:
        read = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (AssertionError, TypeError) as e:
        raise ValueError from e
    found = [
        (r.splitname, r.from_ or 0, SIZES[r.splitname] if r.to is None else r.to)
        for r in read
    ]
    if any(start >= stop for _, start, stop in found):
        raise ValueError("nothing left")
    return found


@pytest.mark.parametrize("split", EXPRESSIONS)
def test_agrees_with_tfds(split):
    try:
        want = by_tfds(split)
    except ValueError:
        with pytest.raises(UserError):
            splits.resolve(split, SIZES, where="x")
    else:
        assert splits.resolve(split, SIZES, where="x") == want


def test_percentages_leave_nothing_out():
    """Slices that touch: every record in exactly one."""
    for size in (1, 2, 7, 50, 101, 1234, 1_281_167):
        stop = 0
        for k in range(0, 100, 5):
            try:
                (part,) = splits.resolve(f"a[{k}%:{k + 5}%]", {"a": size}, where="x")
            except UserError:
                continue  # empty: fewer than 20 records
            assert part.start == stop
            stop = part.stop
        assert stop == size


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", 'x has no split "trian"; did you mean "train".* it has: train, test'),
        ("train[10:10]", r'"train\[10:10\]" of x is empty: "train" has 1234 records'),
        ("train[:x]", '"x" is not understood; expected a number'),
        ("train[:9999]", "9999 is past the end; it has 1234 records"),
        ("train[1:2", "is not understood; expected for example train"),
    ],
)
def test_messages(split, message):
    with pytest.raises(UserError, match=message.replace("* it", r"*\(it")):
        splits.resolve(split, SIZES, where="x")
