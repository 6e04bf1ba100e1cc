import math

import numpy as np
import pytest

from vit_jax.data import sampler
from vit_jax.data.sampler import Stream

MASK = 2**64 - 1

GOLDEN_SMALL = [2, 0, 9, 4, 1, 8, 3, 6, 7, 5, 2, 9, 0, 5, 3, 6, 1, 7, 8, 4]
GOLDEN_IMAGENET = [95450, 17422, 586216, 79874, 1270577, 1209057, 826277, 980432]
GOLDEN_LATE = [558421, 402982]
GOLDEN_UNIFORMS = [
    [0.5026230818294767, 0.5805554841444246],
    [0.09444925228554213, 0.993488411771344],
]


def reference_bits(key: int, counter: int) -> int:
    """SplitMix64 as published, on Python's integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_record(number: int, num_records: int, seed: int) -> int:
    """The record of one example, one number at a time."""
    epoch, x = divmod(number, num_records)
    key = reference_bits(reference_bits(seed & MASK, 0), epoch)
    a = math.ceil(math.sqrt(num_records))
    a += a % 2
    b = math.ceil(num_records / a)
    while True:
        left, right = divmod(x, b)
        for i in range(16):
            if i % 2 == 0:
                bits = reference_bits(key, right * 16 + i)
                left = (left + ((bits >> 32) * a >> 32)) % a
            else:
                bits = reference_bits(key, left * 16 + i)
                right = (right + ((bits >> 32) * b >> 32)) % b
        x = left * b + right
        if x < num_records:
            return x


def test_random_bits_are_splitmix64():
    # The first outputs for seed 1234567, as published with many implementations.
    assert sampler.random_bits(1234567, np.arange(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_golden_orders():
    """An interface: a run that is resumed next year needs these same numbers."""
    order = sampler.record_numbers(np.arange(20), 10, seed=0)
    assert order.tolist() == GOLDEN_SMALL
    order = sampler.record_numbers(np.arange(8), 1_281_167, seed=42)
    assert order.tolist() == GOLDEN_IMAGENET
    number = 300 * 1_281_167 - 1 + np.arange(2)
    assert sampler.record_numbers(number, 1_281_167, seed=42).tolist() == GOLDEN_LATE


def test_golden_uniforms():
    got = sampler.uniforms(0, Stream.CROP, np.array([0, 123456789012]), 2)
    np.testing.assert_array_equal(got, GOLDEN_UNIFORMS)


@pytest.mark.parametrize("num_records", [2, 3, 10, 97, 101, 8000, 60_000, 1_281_167])
@pytest.mark.parametrize("seed", [0, -3, 2**70 + 5])
def test_order_is_the_reference(num_records, seed):
    numbers = np.array([0, 1, 7, num_records, 5 * num_records - 1, 10**12])
    got = sampler.record_numbers(numbers, num_records, seed=seed)
    want = [reference_record(int(n), num_records, seed) for n in numbers]
    assert got.tolist() == want


@pytest.mark.parametrize("num_records", [1, 2, 3, 4, 5, 7, 10, 100, 101, 8000, 65537])
def test_each_epoch_shows_each_record_once(num_records):
    numbers = np.arange(3 * num_records)
    epochs = sampler.record_numbers(numbers, num_records, seed=1).reshape(3, -1)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(num_records))
    if num_records >= 7:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[1], epochs[2])


def test_all_orders_come_equally_often():
    """Of 4 records: 24 orders, chi-square over 24 * 400 epochs."""
    order = sampler.record_numbers(np.arange(4 * 9600), 4, seed=2).reshape(-1, 4)
    _, counts = np.unique(order @ (4 ** np.arange(4)), return_counts=True)
    assert len(counts) == 24
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_every_place_sees_every_record():
    """Of 100 records: record x place counts over 2,000 epochs, chi-square."""
    order = sampler.record_numbers(np.arange(100 * 2000), 100, seed=3).reshape(-1, 100)
    counts = np.zeros((100, 100))
    np.add.at(counts, (np.arange(100)[None, :].repeat(2000, 0), order), 1)
    chi_square = ((counts - 20) ** 2 / 20).sum()
    freedom = 99 * 99
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_orders_are_uncorrelated():
    """Between epochs, seeds, and neighbours in an epoch: |r| < 4 / sqrt(N)."""
    n = 8000
    orders = [
        sampler.record_numbers(np.arange(4 * n), n, seed=seed).reshape(4, n)
        for seed in range(4)
    ]
    orders = np.concatenate(orders)
    correlations = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(n)
    for order in orders:
        neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
        assert abs(neighbours) < 4.5 / math.sqrt(n)
        assert np.count_nonzero(order == np.arange(n)) < 10  # fixed points: Poisson(1)


def test_next_seed_is_not_next_epoch():
    first, second = (
        sampler.record_numbers(np.arange(200), 100, seed=seed) for seed in (1, 2)
    )
    assert not np.array_equal(first[100:], second[:100])


def test_uniforms_are_uniform_and_apart():
    numbers = np.arange(20_000)
    crop = sampler.uniforms(0, Stream.CROP, numbers, 2)
    flip = sampler.uniforms(0, Stream.FLIP, numbers, 2)
    other = sampler.uniforms(1, Stream.CROP, numbers, 2)
    columns = np.concatenate([crop, flip, other], axis=1)
    assert columns.min() >= 0
    assert columns.max() < 1
    for column in columns.T:
        counts, _ = np.histogram(column, 50, (0, 1))
        chi_square = ((counts - 400) ** 2 / 400).sum()
        assert chi_square < 85.4  # 49 degrees of freedom, p = 0.001
    correlations = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < 4.5 / math.sqrt(len(numbers))
    in_sequence = np.corrcoef(crop[:-1, 0], crop[1:, 0])[0, 1]
    assert abs(in_sequence) < 4.5 / math.sqrt(len(numbers))


def test_a_row_depends_on_its_number_alone():
    numbers = np.array([5, 123, 10**12, 0])
    together = sampler.uniforms(7, Stream.CROP, numbers, 22)
    for i in range(len(numbers)):
        alone = sampler.uniforms(7, Stream.CROP, numbers[i : i + 1], 22)
        np.testing.assert_array_equal(alone[0], together[i])
