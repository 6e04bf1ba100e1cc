"""The picture of all augmentations, which people look at."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data import pictures
from vit_jax.data import augment, augment_sheet
from vit_jax.data.augment_sheet import GAP, LABEL, SIDE


def test_the_sheet_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = pictures.photo(SIDE, SIDE + 20)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    output = tmp_path / "sheet.png"
    argv = ["augment_sheet", str(tmp_path / "photo.png"), f"--output={output}"]
    assert augment_sheet.main(argv) == 0
    assert "rows written to" in capsys.readouterr().out
    with Image.open(output) as image:
        sheet = np.asarray(image)
    names = list(augment.OPERATIONS)
    step = SIDE + GAP
    assert sheet.shape[0] % step == 0
    whole = Image.fromarray(photo[:, 10:-10])
    for name, want in (("identity", whole), ("invert", ImageOps.invert(whole))):
        top = names.index(name) * step
        got = sheet[top : top + SIDE, LABEL : LABEL + SIDE]
        np.testing.assert_array_equal(got, np.asarray(want))
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_every_operation_has_magnitudes() -> None:
    assert set(augment_sheet.MAGNITUDES) == set(augment.OPERATIONS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: No such file"),
        ([__file__], "cannot be decoded"),
        (["a.png", "--augment=randaug"], "invalid choice"),
        (["a.png", f"--seed={10**25}"], "expected 0 or more, below 2"),
        (["a.png", "--ouput=b.png"], "--output"),
        ([], "IMAGE, a picture, is needed"),
    ],
)
def test_bad_arguments(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert augment_sheet.main(["augment_sheet", *argv]) == 2
    assert message in capsys.readouterr().err
