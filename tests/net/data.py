"""The data of the twelve runs, from NumPy's generator: the same bytes everywhere."""

from pathlib import Path

import cv2
import numpy as np


def write(root: Path) -> None:
    """Fills a folder that does not exist."""
    random = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return random.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)

    def put(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)

    for split, count in (("train", 40), ("test", 21)):
        for i, image in enumerate(images(count)):
            path = root / "folder" / split / ("a" if i < count // 3 else "b")
            put(path / f"{i:02}.png", image)
            if i in (3, 17):  # cut short, and empty
                data = (path / f"{i:02}.png").read_bytes()
                (path / f"{i:02}.png").write_bytes(data[: 500 * (i % 2)])
    for corruption in ("fog", "snow"):
        for severity in ("1", "2"):
            for i, image in enumerate(images(20)):
                folder = root / "corrupted" / corruption / severity / f"class{i % 10}"
                put(folder / f"{i:02}.png", image)
    np.savez(
        root / "tags.npz",
        x_train=images(64),
        y_train=random.integers(0, 2, (64, 5), dtype=np.uint8),
        x_test=images(30),
        y_test=random.integers(0, 2, (30, 5), dtype=np.uint8),
    )
