"""Confusion matrices and mistakes, as people see them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.evaluators import told
from vit_jax import lettering
from vit_jax.data import contact_sheet
from vit_jax.evaluators import confusion

MARGIN = 16  # of the picture of a matrix, on the right and at the bottom


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2.1's ratio of two sRGB colours, from the text of the standard."""
    luminances = []
    for color in (one, other):
        channels = [int(c) / 255 for c in color]
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in channels
        ]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    low, high = sorted(luminances)
    return (high + 0.05) / (low + 0.05)


def cells(picture: np.ndarray, k: int, side: int) -> np.ndarray:
    """[k, k, side, side, 3], from the lower right corner, where the matrix ends."""
    matrix = picture[-MARGIN - k * side : -MARGIN, -MARGIN - k * side : -MARGIN]
    return matrix.reshape(k, side, k, side, 3).swapaxes(1, 2)


def test_counts_can_be_read_on_every_shade() -> None:
    """Shares from 1 to 99%: 4.5 : 1 is what WCAG asks of small text."""
    k = 10
    shares = np.arange(1, 101).reshape(k, k)
    for row in range(
        0, k, 3
    ):  # one matrix for each row of shares: a row must sum to 100
        counts = np.zeros((k, k), int)
        for i in range(k):
            counts[i, 0], counts[i, 1] = shares[row, i], 100 - shares[row, i]
        found = cells(confusion.draw(counts), k, 100)
        for i in range(k):
            for j in (0, 1):
                if counts[i, j]:
                    cell = found[i, j, 10:-10, 10:-10].reshape(-1, 3)
                    background = cell[0]
                    best = max(contrast(background, c) for c in np.unique(cell, axis=0))
                    assert best >= 4.5, (counts[i, j], background)


@pytest.mark.parametrize("grey", range(0, 256, 5))
def test_ink(grey: int) -> None:
    for color in ((grey, grey, grey), (grey, 0, 255 - grey), (255, grey, 0)):
        ink = lettering.ink(color)
        other = lettering.WHITE if ink == lettering.BLACK else lettering.BLACK
        ratio = contrast(np.array(ink), np.array(color))
        assert ratio >= 4.5 and ratio >= contrast(np.array(other), np.array(color))
    assert contrast(np.array(lettering.GREY), np.array(lettering.WHITE)) >= 4.5


def test_confusion() -> None:
    counts = np.diag([5, 5, 2, 0])
    counts[2, 0] = 3
    names = ["cat", "dög", "a name of a class", "cow"]
    picture = confusion.draw(counts, names, "test, step 3: accuracy 0.8")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    shade = cells(picture, 4, 120)[:, :, 5, 5].astype(int)
    assert (shade[0, 0] == (8, 48, 107)).all() and (shade[3] == 255).all()
    assert (shade[2, 0] < shade[2, 2]).any() and (shade[2, 2] < 255).any()
    assert (shade[0, 1] == 255).all()
    without = confusion.draw(counts, names)
    assert picture.shape[0] > without.shape[0]  # a line for the title
    assert (picture[: picture.shape[0] - without.shape[0]] < 100).any()


@pytest.mark.parametrize("k", [2, 30, 71, 200, 501, 1000])
def test_confusions_of_many_classes_stay_of_a_size(k: int) -> None:
    counts = np.full((k, k), 1)
    names = [f"class {i} of a long name, {'x' * 300}" for i in range(k)]
    height, width, _ = confusion.draw(counts, names, "a title").shape
    assert k <= min(height, width) and height <= 1400 and width <= 2000


def test_what_is_taken_for_what() -> None:
    """Where counts cannot be read in the cells, the largest are listed beside them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (60, 60))
    pairs = confusion.most_frequent(counts, 20)
    off = sorted(counts[~np.eye(60, dtype=bool)], reverse=True)[:20]
    assert [count for _, _, count in pairs] == off
    assert all(counts[i, j] == count and i != j for i, j, count in pairs)
    few, many = confusion.draw(np.eye(29, dtype=int)), confusion.draw(counts)
    assert many.shape[1] > few.shape[1] + 200
    right = confusion.draw(np.eye(60, dtype=int))  # says that there is none
    assert (right[:, -200:] < 100).any()


def folder(root: Path, names: tuple[str, ...], count: int) -> dict[str, Any]:
    """`count` pictures a class; the number of each is in its first pixels."""
    pixels = told.images(len(names) * count)
    for i, image in enumerate(pixels):
        place = root / "test" / names[i // count]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return told.data(root) | {"name": "folder"}


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_mistakes(mesh: Any, tmp_path: Path) -> None:
    """The surest first; which files they are; and their pictures with both names."""
    names, count = ("cat", "cow", "dog"), 40
    section = folder(tmp_path, names, count)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3 * count, 3)).astype(np.float32) * 2
    result = told.evaluate(section, logits, told.mesh(*mesh), label_names=names)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.repeat(np.arange(3), count)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = wrong[np.argsort(-chances.max(axis=1)[wrong], kind="stable")][:30]
    assert len(wrong) > 30
    found = result.record["surest_mistakes"]
    assert [Path(m["image"]).name for m in found] == [f"{i:03}.png" for i in order]
    assert [m["label"] for m in found] == [names[labels[i]] for i in order]
    best = logits.argmax(axis=1)
    assert [m["prediction"] for m in found] == [names[best[i]] for i in order]
    np.testing.assert_allclose(
        [m["probability"] for m in found], chances.max(axis=1)[order], rtol=1e-5
    )
    assert result.record["per_class"]["class"] == list(names)
    picture = result.last_pictures["mistakes"]("it")
    assert picture is not None
    # Each image is shown enlarged, in the order of the list.
    pixels = told.images(3 * count)
    for n, i in enumerate(order[:10]):
        top, left = 30 + n // 6 * (180 + 2 * 18 + 4), 8 + n % 6 * 184
        shown = picture[top : top + 180, left : left + 180]
        np.testing.assert_array_equal(shown[45::90, 45::90], pixels[i])
    # One that can no longer be read is left out.
    Path(found[0]["image"]).unlink()
    again = result.last_pictures["mistakes"]("it")
    assert again is not None
    shown = again[30:210, 8:188]
    np.testing.assert_array_equal(shown[45::90, 45::90], pixels[order[1]])


def test_no_mistakes(tmp_path: Path) -> None:
    section = folder(tmp_path, ("cat", "cow"), 2)
    logits = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    result = told.evaluate(section, logits, told.mesh(1, 1, 1))
    assert result.record["surest_mistakes"] == [] and not result.last_pictures


def test_sheets_show_other_letters_than_ascii() -> None:
    """Accents and what is not Latin are no reason to show nothing."""
    strips = [
        contact_sheet.Strip("", np.full((1, 96, 96, 3), 255, np.uint8), [caption])
        for caption in ("", "猫")
    ]
    empty, named = map(contact_sheet.draw, ([strips[0]], [strips[1]]))
    assert (empty == 255).all() and (named < 128).any()
    assert lettering.in_ascii("Ångström ½") == "Angstrom 1?2"
    large = cv2.__version__ >= "5"
    assert lettering.legible("猫") == ("猫" if large else "?")
