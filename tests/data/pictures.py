"""Images to augment, of many sizes and kinds."""

import numpy as np
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth colour image, as a photo is: noise enlarged."""
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8
    )
    return np.asarray(
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    )


def many() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (37, 50, 3), np.uint8)
    steps = np.broadcast_to(np.arange(28, dtype=np.uint8)[:, None, None] * 9, (28,) * 3)
    return {
        "photo": photo(60, 44),
        "square": photo(56, 56, 1),
        "noise": noise,
        "dark": noise // 5 + 20,
        "grey 28x28": np.repeat(noise[:28, :28, :1], 3, axis=2),
        "few values": noise // 100 * 90,
        "one colour": np.full((9, 7, 3), (3, 200, 90), np.uint8),
        "steps": np.ascontiguousarray(steps[:, :, :3]),
        "2x3": noise[:2, :3].copy(),
        "1x1": noise[:1, :1].copy(),
        "one row": noise[:1].copy(),
    }
